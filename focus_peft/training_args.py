"""`FocusTrainingArguments` and `join_processes`, at the path that users import them from."""

from .trainer.arguments import FocusTrainingArguments, join_processes


__all__ = ["FocusTrainingArguments", "join_processes"]
