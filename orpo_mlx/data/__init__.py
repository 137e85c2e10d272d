"""Preference pairs: reading, encoding, batching. Never imports mlx."""
