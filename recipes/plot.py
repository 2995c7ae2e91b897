"""Pictures of what the recipes wrote.

    python recipes/plot.py curves --logdir outputs/smollm2_135m_cpu --output docs/results/smollm2_135m_cpu.svg

`curves`: both losses of a training run, from its TensorBoard files, beside the local window alone on the same labels. Held-out losses
have marks; those of single training steps are thin lines. Readable without colours.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib


matplotlib.use("Agg")
import matplotlib.pyplot as plt
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


LOSSES = ("continuation", "repetition")


def scalars(folder: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of every scalar below a folder; where a resumed run wrote a step again, the last value counts."""
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
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output, metadata={"Date": None} if args.output.suffix == ".svg" else None)


def draw(panel: Any, runs: dict[str, tuple[list[int], list[float]]], tag: str, **style: Any) -> None:
    if tag in runs:
        panel.plot(*runs[tag], **style)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("curves", help="losses of a training run")
    one.add_argument("--logdir", type=Path, required=True, help="the run's output folder")
    one.add_argument("--output", type=Path, required=True, help="an .svg or .png file")
    one.set_defaults(run=curves)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
