"""A model to MLX and back."""
