"""What is wrong with preference pairs, and what a model could learn instead of quality."""
