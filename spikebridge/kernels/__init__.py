"""Bindings of the fused kernels.  Only `spikebridge.scan` knows that they exist."""
