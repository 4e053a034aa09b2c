"""A device bench: crossbars served to other machines, and their client."""
