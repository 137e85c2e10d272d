"""The run folder as a format. Imports no mlx."""
