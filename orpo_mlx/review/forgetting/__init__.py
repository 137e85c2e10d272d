"""What a model forgot when it was trained: its loss on general text."""
