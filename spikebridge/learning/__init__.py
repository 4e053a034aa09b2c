"""Learning rules as parts for any torch model: GRAPES, feedback alignment, online learning."""
