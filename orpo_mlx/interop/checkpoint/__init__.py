"""Hugging Face checkpoints of MLX models: names, layout, shards, sidecar files."""
