"""What a run measures: its log, and what that warns of."""
