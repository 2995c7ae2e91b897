"""`FocusSFTTrainer`, at the path that users import it from."""

from .trainer.sft import FocusSFTTrainer


__all__ = ["FocusSFTTrainer"]
