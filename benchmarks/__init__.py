"""This project's paths compared with mlx-lm-lora: the same work in one run."""
