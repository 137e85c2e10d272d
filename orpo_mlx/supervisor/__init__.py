"""A run that is trained in a child process and watched from this one. Imports no mlx."""
