"""Answers of a base and its adapters to many prompts, and a talk with both."""
