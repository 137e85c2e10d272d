"""Pairs to token ids on disk."""
