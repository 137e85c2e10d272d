"""PEFT adapters, both ways."""
