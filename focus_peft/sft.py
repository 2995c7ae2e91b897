"""`FocusSFTTrainer` and `FocusSFTConfig`, at the path that users import them from."""

from .trainer.sft import FocusSFTConfig, FocusSFTTrainer


__all__ = ["FocusSFTConfig", "FocusSFTTrainer"]
