"""Bytes to rows, each with its location."""
