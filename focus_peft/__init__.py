"""focus_peft gives any frozen decoder-only language model a long context, the FocusLLM way, as a PEFT adapter.

Importing it registers the method with PEFT: `get_peft_model(model, FocusConfig())` and `PeftModel.from_pretrained`
then work.
"""

from .config import FocusConfig
from .losses.output import FocusOutput
from .memory.memory import Memory
from .model import FocusModel
from .registration import register


__version__ = "0.1.0"

__all__ = ["FocusConfig", "FocusModel", "FocusOutput", "Memory"]

register()
