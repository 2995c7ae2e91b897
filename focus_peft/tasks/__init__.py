"""Tasks that tell whether an adapter finds what it has read, and other ways to read to hold it against."""

from .baselines import FullAttention, LocalWindow
from .infinitebench import INFINITEBENCH_TASKS
from .methods import Adapter, Method
from .niah import NIAH_TASKS
from .passkey import Passkey, PasskeyTask
from .perplexity import PerplexityTask
from .ruler import RULER_TASKS
from .samples import Sample, Source, Task


# Tasks that are answered in words, by name
TASKS: dict[str, Task] = {task.name: task for task in (Passkey(), *NIAH_TASKS, *RULER_TASKS, *INFINITEBENCH_TASKS)}

__all__ = [
    "TASKS",
    "Adapter",
    "FullAttention",
    "LocalWindow",
    "Method",
    "PasskeyTask",
    "PerplexityTask",
    "Sample",
    "Source",
    "Task",
]
