"""LongBench's tasks."""
