"""Tasks that tell whether an adapter finds what it has read, and other ways to read to hold it against."""

from collections.abc import Callable
from functools import partial

from .babilong import BABILONG_TASKS
from .baselines import (
    BM25,
    FullAttention,
    LocalWindow,
    ScaledRope,
    UntrainedTwins,
)
from .cached import ParallelWindows, StreamingLLM
from .infinitebench import INFINITEBENCH_TASKS
from .longppl import KeyTokens, LongPerplexityTask
from .methods import Adapter, Method
from .niah import NIAH_TASKS
from .passkey import LandmarkPasskey, Passkey, PasskeyTask
from .perplexity import PerplexityTask
from .ruler import RULER_TASKS
from .samples import Sample, Source, Task


# Tasks that are answered in words, by name
TASKS: dict[str, Task] = {
    task.name: task
    for task in (Passkey(), LandmarkPasskey(), *NIAH_TASKS, *RULER_TASKS, *INFINITEBENCH_TASKS, *BABILONG_TASKS)
}
# Ways to read, by name; each is called with the model, and options
METHODS: dict[str, Callable[..., Method]] = {
    "adapter": Adapter,
    "adapter_exact": partial(Adapter, decoding="exact"),
    "untrained_twins": UntrainedTwins,
    "static_prompt": partial(Adapter, prompt_size=1),
    "local_window": LocalWindow,
    "full_attention": FullAttention,
    "position_interpolation": partial(ScaledRope, kind="linear"),
    "dynamic_ntk": partial(ScaledRope, kind="dynamic"),
    "yarn": partial(ScaledRope, kind="yarn"),
    "streaming_llm": StreamingLLM,
    "parallel_windows": ParallelWindows,
    "bm25": BM25,
}

__all__ = [
    "BM25",
    "METHODS",
    "TASKS",
    "Adapter",
    "FullAttention",
    "KeyTokens",
    "LocalWindow",
    "LongPerplexityTask",
    "Method",
    "ParallelWindows",
    "PasskeyTask",
    "PerplexityTask",
    "Sample",
    "ScaledRope",
    "Source",
    "StreamingLLM",
    "Task",
    "UntrainedTwins",
]
