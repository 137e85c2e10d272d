"""This project's fast and plain path beside mlx-lm-lora, the same work in one run."""
