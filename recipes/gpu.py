"""Check and measure everything on one GPU, in ten minutes: `docs/gpu.md` says how to read what comes out.

    python recipes/gpu.py --output docs/results/gpu
    python recipes/gpu.py --output docs/results/gpu --parts check,decoding
    python recipes/gpu.py --output docs/results/gpu --parts adapter --base ~/.cache/focus_peft/SmolLM2 --minutes 5
    python recipes/gpu.py --output /tmp/gpu --small                          # tiny sizes on the CPU, in a minute
    python recipes/gpu.py --join docs/results/gpu/checkpoint outputs/trained

From a bare checkout: `PYTHONPATH=. python recipes/gpu.py ...`. It needs torch, transformers, peft, accelerate and
safetensors, and no network. Every part writes `<part>.json` in the output folder, cell by cell; one that is killed
leaves what it had.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any


os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import transformers
from benchmarks.gpu.report import Options, Report, free
from lib.command_line import command_of, listed, parser_of

from focus_peft.hub.markdown import table


PARTS = ("check", "reading", "decoding", "training", "adapter")
# Seconds of a part; the adapter's are those of its passkeys, and training comes on top
SECONDS, PASSKEY_SECONDS = 170.0, 110.0
# The figures of the table, where a cell has them
COLUMNS = (
    "seconds",
    "milliseconds_per_token",
    "tokens_per_second",
    "labels_per_second",
    "peak_memory_gb",
    "times_the_floor",
    "of_base_model_rate",
    "times_full_attention",
    "hours_of_the_paper",
    "accuracy",
)
NAMES = ("check", "model", "twins", "decoding", "documents", "tokens", "way")


def main(args: argparse.Namespace) -> int:
    """Run the parts; the exit status."""
    transformers.logging.set_verbosity_error()
    options = options_of(args)
    failed = False
    for part in args.parts:
        print(f"{part} on {options.device}", flush=True)
        begin = time.perf_counter()
        of_part = options
        if part == "adapter":
            of_part = replace(options, seconds=max(options.seconds, PASSKEY_SECONDS + options.training_seconds))
        report = Report(part, of_part)
        try:
            module: Any = importlib.import_module(f"benchmarks.gpu.{part}")
            gc.freeze()  # what was imported is not looked through after each cell
            module.run(report)
        except Exception as error:  # the other parts go on
            report.note_failure(error)
        free(options.device)
        failed |= part == "check" and not report.values.get("passed_all", False)
        print(f"{part}: {time.perf_counter() - begin:.0f} s\n", flush=True)
    for part in args.parts:
        print(table_of(json.loads((options.output / f"{part}.json").read_text(encoding="utf-8"))))
    return int(failed)


def options_of(args: argparse.Namespace) -> Options:
    """What the parts are run with.

    Raises:
        SystemExit: if there is no card, and sizes are not small.
    """
    device = args.device or ("cpu" if args.small or not torch.cuda.is_available() else "cuda")
    if device == "cpu" and not args.small:
        raise SystemExit(
            "error: there is no card that torch can use; `--small` runs every part on the CPU with tiny sizes."
        )
    if device == "cuda":
        device = "cuda:0"
        torch.cuda.set_device(device)
    return Options(
        output=args.output,
        device=torch.device(device),
        small=args.small,
        seconds=args.seconds,
        command=command_of("gpu.py", sys.argv[1:]),
        r=(4 if args.small else args.r) or None,
        base=args.base,
        adapter=args.adapter,
        texts=args.texts,
        training_seconds=2.0 if args.small else 60 * args.minutes,
        max_part_mb=args.max_part_mb,
    )


def table_of(result: dict[str, Any]) -> str:
    """A Markdown table of a part: of the checks, those that did not pass."""
    cells = [cell for cell in result["cells"] if cell.get("way") != "warm-up"]
    lines = [f"**{result['part']}**, {result['device']}, {result['dtype']}, {result['seconds']:.0f} s", ""]
    if result["part"] == "check":
        lines += [
            f"{result.get('passed', 0)} passed, {result.get('skipped', 0)} skipped, "
            f"{result.get('failed', 'an unknown number')} failed",
            "",
        ]
        cells = [cell for cell in cells if cell["status"] != "ok"]
    names = [name for name in NAMES if any(name in cell for cell in cells)]
    columns = [name for name in COLUMNS if any(cell.get(name) is not None for cell in cells)]
    rows = []
    for cell in cells:
        values = [f"{cell[name]:,}" if isinstance(cell.get(name), int) else cell.get(name, "") for name in names]
        figures = ["" if cell.get(name) is None else f"{cell[name]:g}" for name in columns]
        status = cell["status"] + (f": {cell['reason'][:80]}" if cell.get("reason") else "")
        rows.append([*values, *figures, status])
    if rows:
        lines.append(table([name.replace("_", " ") for name in (*names, *columns, "status")], rows))
    return "\n".join([*lines, *(f"\n{note}" for note in result["notes"])]) + "\n"


def parts(words: str) -> list[str]:
    """A reader of names of parts with commas between them."""
    named = listed(words)
    for name in named:
        if name not in PARTS:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(PARTS)}.")
    return named


def parse_args(words: list[str] | None = None) -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--output", type=Path, default=Path("docs/results/gpu"), help="the folder of the JSONs")
    parser.add_argument("--parts", type=parts, default=list(PARTS), help=f"default: {','.join(PARTS)}")
    parser.add_argument("--small", action="store_true", help="tiny sizes, on the CPU unless --device says otherwise")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: the card, and the CPU with --small")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time limit of each part (default: 170)")
    parser.add_argument("--r", type=int, default=64, help="rank of the twins that read and decode; 0: full copies")
    parser.add_argument("--base", type=Path, help="folder of SmolLM2-135M-Instruct, as transformers saves it")
    parser.add_argument("--adapter", type=Path, help="default: the one in hub/")
    parser.add_argument("--texts", help="texts to train on, as a glob (default: Python's standard library)")
    parser.add_argument("--minutes", type=float, default=1.0, help="of training from the adapter (default: 1)")
    parser.add_argument(
        "--max-part-mb", type=int, default=15, help="largest file of the trained adapter (default: 15)"
    )
    parser.add_argument(
        "--join", type=Path, nargs=2, metavar=("CHECKPOINT", "ADAPTER"), help="make an adapter of its files, and stop"
    )
    return parser.parse_args(words)


if __name__ == "__main__":
    given = parse_args()
    if given.join is not None:
        from benchmarks.gpu.adapter_training import join_parts

        join_parts(*given.join)
        raise SystemExit(0)
    raise SystemExit(main(given))
