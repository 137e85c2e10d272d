"""A row format a file, and the ordered list of them."""
