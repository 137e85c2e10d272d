"""What messages are made of, and what a row holds around them."""
