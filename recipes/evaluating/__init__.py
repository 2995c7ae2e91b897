"""Evaluations: configuration, jobs and tables."""
