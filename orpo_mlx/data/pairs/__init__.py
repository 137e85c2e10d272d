"""Rows to preference pairs."""
