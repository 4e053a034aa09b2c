"""In-memory computing: weights as conductances of phase-change cells, in a simulation or a lab."""
