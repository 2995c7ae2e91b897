"""The measurements of `benchmark.py`; each way of a measurement is a function that one process calls once."""
