"""Every command's options, each declared once."""
