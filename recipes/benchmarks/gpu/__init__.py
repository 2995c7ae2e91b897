"""The parts of `recipes/gpu.py`: one file measures one thing, and writes one JSON."""
