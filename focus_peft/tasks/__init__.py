"""Tasks that tell whether an adapter finds what it has read, and other ways to read to hold it against."""

from collections.abc import Callable
from functools import partial

from .babilong.task import BABILONG_TASKS
from .code.task import CrossFileLine
from .infinitebench.made import INFINITEBENCH_TASKS
from .infinitebench.published import INFINITEBENCH_RECORD_TASKS
from .longbench.published import LONGBENCH_TASKS
from .longppl import KeyTokens, LongPerplexityTask
from .methods.adapter import Adapter
from .methods.base import Method
from .methods.bm25 import BM25
from .methods.dense import Dense
from .methods.full_attention import FullAttention
from .methods.fused_ranking import FusedRanking
from .methods.local_window import LocalWindow
from .methods.parallel_windows import ParallelWindows
from .methods.pressed_cache import PACKAGE, PressedCache, press_named
from .methods.scaled_rope import ScaledRope
from .methods.streaming_llm import StreamingLLM
from .methods.untrained_twins import UntrainedTwins
from .passkey import LandmarkPasskey, Passkey, PasskeyTask
from .perplexity import PerplexityTask
from .records import Benchmark, RecordTask
from .ruler.needles import NIAH_TASKS
from .ruler.words_and_variables import RULER_TASKS
from .samples import Sample, Source
from .task import Task


# Tasks that are answered in words and made from a seed at any length, by name
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Passkey(),
        LandmarkPasskey(),
        CrossFileLine(),
        *NIAH_TASKS,
        *RULER_TASKS,
        *INFINITEBENCH_TASKS,
        *BABILONG_TASKS,
    )
}
# Tasks that are answered in words, whose samples are published records of their own lengths, by name
RECORD_TASKS: dict[str, RecordTask] = {task.name: task for task in (*LONGBENCH_TASKS, *INFINITEBENCH_RECORD_TASKS)}
# Ways to read, by name; each is called with the model, and options
METHODS: dict[str, Callable[..., Method]] = {
    "adapter": Adapter,
    "adapter_exact": partial(Adapter, decoding="exact"),
    "adapter_read": partial(Adapter, read_chunks=4),
    "untrained_twins": UntrainedTwins,
    "untrained_read": partial(UntrainedTwins, read_chunks=4),
    "static_prompt": partial(Adapter, prompt_size=1),
    "local_window": LocalWindow,
    "full_attention": FullAttention,
    "position_interpolation": partial(ScaledRope, kind="linear"),
    "dynamic_ntk": partial(ScaledRope, kind="dynamic"),
    "yarn": partial(ScaledRope, kind="yarn"),
    "streaming_llm": StreamingLLM,
    "parallel_windows": ParallelWindows,
    "bm25": BM25,
    "dense": Dense,
    "fused_ranking": FusedRanking,
}


def method_named(name: str) -> Callable[..., Method]:
    """A way to read: an entry of `METHODS`, or a press of kvpress such as "kvpress:SnapKV@0.5".

    Raises:
        ValueError: if there is none of this name, or kvpress is not installed.
    """
    if name.startswith(f"{PACKAGE}:"):
        return partial(PressedCache, press=press_named(name))
    if name not in METHODS:
        known = ", ".join([*METHODS, f"{PACKAGE}:CLASS@RATIO"])
        raise ValueError(f"`methods` has the unknown entry `{name}`; there are {known}.")
    return METHODS[name]


__all__ = [
    "BM25",
    "METHODS",
    "RECORD_TASKS",
    "TASKS",
    "Adapter",
    "Benchmark",
    "Dense",
    "FullAttention",
    "FusedRanking",
    "KeyTokens",
    "LocalWindow",
    "LongPerplexityTask",
    "Method",
    "ParallelWindows",
    "PasskeyTask",
    "PerplexityTask",
    "PressedCache",
    "RecordTask",
    "Sample",
    "ScaledRope",
    "Source",
    "StreamingLLM",
    "Task",
    "UntrainedTwins",
    "method_named",
]
