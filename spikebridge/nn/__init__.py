"""Units through time, their gradients and kernels, synapses, layers, networks."""

# First of all: torch must know our operators and State, whichever module here is what imports it.
import spikebridge.nn.kernels.ops  # noqa: F401
