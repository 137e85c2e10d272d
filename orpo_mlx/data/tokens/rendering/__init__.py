"""What a chat template makes of messages, and whether it says all that they hold."""
