"""Answers of models."""
