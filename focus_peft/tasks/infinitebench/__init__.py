"""InfiniteBench's tasks."""
