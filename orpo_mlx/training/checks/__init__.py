"""Whether a run computes right: a check at its start, and what was first not finite."""
