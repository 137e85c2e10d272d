"""A model's answers to a few prompts while it is trained."""
