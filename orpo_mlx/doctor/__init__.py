"""`orpo-mlx doctor`: whether this machine and installation compute what they should."""
