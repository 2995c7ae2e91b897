"""Training: transformers' `Trainer` with the paper's losses."""

from .trainer import FocusTrainer


__all__ = ["FocusTrainer"]
