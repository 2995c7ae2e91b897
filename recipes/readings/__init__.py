"""Prompts that ask for a fact in other words than it is told in, among other text than training has."""
