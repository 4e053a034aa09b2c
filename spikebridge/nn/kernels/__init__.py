"""Bindings of the fused kernels.  Only `spikebridge.nn.scan` knows that they exist."""
