"""Code across files."""
