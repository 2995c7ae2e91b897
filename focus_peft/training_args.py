"""`FocusTrainingArguments`, at the path that users import it from."""

from .trainer.arguments import FocusTrainingArguments


__all__ = ["FocusTrainingArguments"]
