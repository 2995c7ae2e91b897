"""Ablations: one change at a time, trained and measured alike."""
