"""Units through time, their gradients and kernels, synapses, layers, networks."""
