"""Runs as people look at them: listed, shown, compared, watched, cleaned."""
