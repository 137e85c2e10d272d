"""Rounds of sampling, judging and training, which can be left and taken up at any point."""
