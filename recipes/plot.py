"""Pictures of what the recipes wrote.

    python recipes/plot.py curves --logdir outputs/smollm2_135m_cpu --output docs/results/smollm2_135m_cpu.svg
    python recipes/plot.py passkey --results outputs/evaluations/FOLDER --method adapter --output passkey.svg
    python recipes/plot.py perplexity --results outputs/evaluations/FOLDER --output perplexity.svg
    python recipes/plot.py scaling --results docs/results/scaling.json --output docs/results/scaling.svg

`curves`: both losses of a training run, from its TensorBoard files, beside the local window alone on the same labels. Held-out losses
have marks; those of single training steps are thin lines. `passkey`: the scores of one method over length and depth, from the samples
of an evaluation. `perplexity`: against length, a line for each method. `scaling`: time and memory against length, from what
`benchmark.py scaling` wrote. All are readable without colours.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib


matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, NullFormatter


LOSSES = ("continuation", "repetition")


def scalars(folder: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of every scalar below a folder; where a resumed run wrote a step again, the last value counts."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, dict[int, float]] = {}
    for file in sorted(folder.rglob("events.out.tfevents.*"), key=lambda file: file.stat().st_mtime):
        events = EventAccumulator(str(file)).Reload()
        for tag in events.Tags()["scalars"]:
            found.setdefault(tag, {}).update({event.step: event.value for event in events.Scalars(tag)})
    return {tag: (sorted(values), [values[step] for step in sorted(values)]) for tag, values in found.items()}


def curves(args: argparse.Namespace) -> None:
    runs = scalars(args.logdir)
    if not any(tag.startswith("train/loss_") for tag in runs):
        raise SystemExit(
            f"error: `--logdir` {str(args.logdir)!r} holds no losses of a FocusTrainer; name its output folder."
        )
    figure, panels = plt.subplots(1, len(LOSSES), figsize=(9, 3.4), sharex=True, layout="constrained")
    for panel, loss in zip(panels, LOSSES):
        draw(panel, runs, f"train/loss_{loss}", color="0.6", linewidth=0.8, label="adapter, training steps")
        draw(
            panel,
            runs,
            f"eval/loss_local_{loss}",
            color="black",
            linestyle="--",
            marker="s",
            label="local window alone, held out",
        )
        draw(panel, runs, f"eval/loss_{loss}", color="tab:blue", linewidth=2, marker="o", label="adapter, held out")
        panel.set(title=loss, xlabel="step", ylim=(0, None))
    panels[0].set_ylabel("cross-entropy (nats per token)")
    panels[0].legend(frameon=False, fontsize=8)
    save(figure, args.output)


def save(figure: Any, output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, metadata={"Date": None} if output.suffix == ".svg" else None)
    plt.close(figure)


def samples(folder: Path, task: str) -> list[dict[str, Any]]:
    """The samples of a task in an evaluation's folder."""
    file = folder / "samples.jsonl"
    if not file.is_file():
        raise SystemExit(
            f"error: `--results` {str(folder)!r} holds no samples.jsonl; name the folder of an evaluation."
        )
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    read = [json.loads(line) for line in lines if line.endswith("\n")]  # the last one may still be being written
    found = [sample for sample in read if sample["task"] == task]
    if not found:
        there = ", ".join(sorted({sample["task"] for sample in read}))
        raise SystemExit(f"error: `--results` {str(folder)!r} has no samples of {task!r}, but of {there}.")
    return found


def cells(found: list[dict[str, Any]], bands: int) -> dict[tuple[int, int], float]:
    """Mean scores by (band of depth, length); the last band has depth 1."""
    groups: dict[tuple[int, int], list[float]] = {}
    for sample in found:
        band = min(bands - 1, math.floor(sample["depth"] * bands + 1e-9))
        groups.setdefault((band, sample["length"]), []).append(sample["score"])
    return {place: math.fsum(scores) / len(scores) for place, scores in groups.items()}


def passkey(args: argparse.Namespace) -> None:
    found = [sample for sample in samples(args.results, args.task) if sample["method"] == args.method]
    if not found or found[0]["depth"] is None:
        raise SystemExit(f"error: there are no samples of {args.task!r} with a depth and the method {args.method!r}.")
    lengths = sorted({sample["length"] for sample in found})
    means = cells(found, args.bands)
    grid = [[means.get((band, length), math.nan) for length in lengths] for band in range(args.bands)]
    figure, panel = plt.subplots(figsize=(1.6 + 0.8 * len(lengths), 1.2 + 0.32 * args.bands), layout="constrained")
    panel.imshow(grid, vmin=0, vmax=1, cmap="Greys_r", aspect="auto")
    for row, values in enumerate(grid):
        for column, value in enumerate(values):
            text = "–" if math.isnan(value) else f"{value:.2f}"
            panel.text(
                column, row, text, ha="center", va="center", color="white" if value < 0.5 else "black", fontsize=8
            )
    panel.set_xticks(range(len(lengths)), [short(length) for length in lengths])
    panel.set_yticks(range(args.bands), [f"{band / args.bands:.0%}" for band in range(args.bands)])
    panel.set(xlabel="tokens", ylabel="depth, from", title=f"{args.task}: {args.method}")
    save(figure, args.output)


def perplexity(args: argparse.Namespace) -> None:
    found = samples(args.results, "perplexity")
    lengths = sorted({sample["length"] for sample in found})
    figure, panel = plt.subplots(figsize=(6, 3.6), layout="constrained")
    styles = [(line, mark) for line in ("-", "--", ":") for mark in "os^Dv"]
    for (line, mark), method in zip(styles, dict.fromkeys(sample["method"] for sample in found)):
        scores = {n: [s["score"] for s in found if (s["method"], s["length"]) == (method, n)] for n in lengths}
        read = [length for length in lengths if scores[length]]
        values = [math.exp(math.fsum(scores[length]) / len(scores[length])) for length in read]
        panel.plot(read, values, linestyle=line, marker=mark, label=method)
    panel.set_xscale("log", base=2)
    panel.set_xticks(lengths)
    panel.xaxis.set_major_formatter(FuncFormatter(lambda length, _: short(int(length))))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set(xlabel="tokens", ylabel="perplexity of the last tokens")
    panel.legend(frameon=False, fontsize=8)
    save(figure, args.output)


def scaling(args: argparse.Namespace) -> None:
    ways = json.loads(args.results.read_text(encoding="utf-8"))["ways"]
    rows = [(name.split(",")[0], values) for name, values in ways.items() if values.get("tokens")]
    if not rows:
        raise SystemExit(f"error: `--results` {str(args.results)!r} was not written by `benchmark.py scaling`.")
    figure, panels = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    for (line, mark), way in zip([("-", "o"), ("--", "s")], dict.fromkeys(way for way, _ in rows)):
        mine = sorted((values for name, values in rows if name == way), key=lambda values: values["tokens"])
        tokens = [values["tokens"] for values in mine]
        for panel, measure in zip(panels, ("prefill_seconds", "peak_memory_gb")):
            panel.plot(tokens, [values[measure] for values in mine], linestyle=line, marker=mark, label=way)
    for panel, title in zip(panels, ("seconds until the first token", "peak memory (GB)")):
        panel.set(xscale="log", yscale="log", xlabel="tokens", title=title)
    panels[0].legend(frameon=False, fontsize=8)
    save(figure, args.output)


def short(length: int) -> str:
    return f"{length // 1024}K" if length % 1024 == 0 else f"{length:,}"


def draw(panel: Any, runs: dict[str, tuple[list[int], list[float]]], tag: str, **style: Any) -> None:
    if tag in runs:
        panel.plot(*runs[tag], **style)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("curves", help="losses of a training run")
    one.add_argument("--logdir", type=Path, required=True, help="the run's output folder")
    one.add_argument("--output", type=Path, required=True, help="an .svg or .png file")
    one.set_defaults(run=curves)
    heat = commands.add_parser("passkey", help="scores over length and depth")
    heat.add_argument("--task", default="passkey", help="another task with depths (default: passkey)")
    heat.add_argument("--method", default="adapter", help="default: adapter")
    heat.add_argument("--bands", type=int, default=10, help="rows (default: 10)")
    heat.set_defaults(run=passkey)
    lines = commands.add_parser("perplexity", help="perplexity against length")
    lines.set_defaults(run=perplexity)
    growth = commands.add_parser("scaling", help="time and memory against length")
    growth.set_defaults(run=scaling)
    for each, holds in ((heat, "folder of an evaluation"), (lines, "folder of an evaluation"), (growth, "JSON")):
        each.add_argument("--results", type=Path, required=True, help=f"the {holds}")
        each.add_argument("--output", type=Path, required=True, help="an .svg or .png file")
    args = parser.parse_args(words)
    args.run(args)


if __name__ == "__main__":
    main()
