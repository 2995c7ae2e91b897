"""The base model as it is: its facts, projections, weights and attention."""
