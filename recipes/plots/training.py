"""Losses of a training run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from focus_peft.hub.run_folder import EARLIER

from .drawing import plt, save


LOSSES = ("continuation", "repetition")
# What is drawn of a loss, by what stands before its name
STYLES: dict[str, dict[str, Any]] = {
    "train/loss_": {"color": "0.6", "linewidth": 0.8, "label": "adapter, training steps"},
    "eval/loss_local_": {"color": "black", "linestyle": "--", "marker": "s", "label": "local window alone, held out"},
    "eval/loss_": {"color": "tab:blue", "linewidth": 2, "marker": "o", "label": "adapter, held out"},
}


def scalars(folder: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of every scalar below a folder, earlier runs that were set aside there left out. Where a
    resumed run repeats a step, the last value counts."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, dict[int, float]] = {}
    for file in sorted(folder.rglob("events.out.tfevents.*"), key=lambda file: file.stat().st_mtime):
        if any(part.startswith(EARLIER) for part in file.relative_to(folder).parts):
            continue
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
        for tag, style in STYLES.items():
            if tag + loss in runs:
                panel.plot(*runs[tag + loss], **style)
        panel.set(title=loss, xlabel="step", ylim=(0, None))
    panels[0].set_ylabel("cross-entropy (nats per token)")
    panels[0].legend(frameon=False, fontsize=8)
    save(figure, args.output)
