"""BABILong's tasks."""
