"""Bases, adapters and forward passes: the seam to mlx-lm."""
