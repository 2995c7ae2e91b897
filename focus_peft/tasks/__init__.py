"""Tasks that tell whether an adapter finds what it has read, and other ways to read to hold it against."""

from .baselines import FullAttention, LocalWindow
from .methods import Adapter, Method
from .passkey import PasskeyTask
from .perplexity import PerplexityTask


__all__ = ["Adapter", "FullAttention", "LocalWindow", "Method", "PasskeyTask", "PerplexityTask"]
