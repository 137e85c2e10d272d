"""Token ids to micro-batches."""
