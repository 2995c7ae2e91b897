"""Training data: any mix of texts and instruction pairs, tokenized once. `import focus_peft` leaves it out.

data = prepare(DataConfig(sources=[SourceConfig("docs/**/*.md")], held_out=20), tokenizer)
"""

from .collator import DocumentCollator
from .config import DataConfig, LengthBand, SourceConfig
from .mixture import HeldOutDataset, MixedDataset
from .preparing import DataReport, PreparedData, SourceReport, prepare


__all__ = [
    "DataConfig",
    "DataReport",
    "DocumentCollator",
    "HeldOutDataset",
    "LengthBand",
    "MixedDataset",
    "PreparedData",
    "SourceConfig",
    "SourceReport",
    "prepare",
]
