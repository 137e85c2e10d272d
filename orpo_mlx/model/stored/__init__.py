"""Model folders as they lie on disk: which files count, what their numbers mean."""
