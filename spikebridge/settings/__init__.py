"""What can be set, presets, and published figures; loads no torch."""
