"""The pictures of `plot.py`, a module for each of the recipes that wrote what they show."""
