"""Ways to read a long input, one a file."""
