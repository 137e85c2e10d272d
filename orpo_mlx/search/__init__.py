"""Choosing a run's settings by short or many runs of train."""
