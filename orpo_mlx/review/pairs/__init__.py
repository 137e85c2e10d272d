"""Preference pairs looked at: preview, check, stats, convert, split."""
