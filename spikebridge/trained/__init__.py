"""What a finished run is asked: on cells, on the chip, by steps, complexity, music, text."""
