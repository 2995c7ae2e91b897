"""Time and memory against length, from what `benchmark.py scaling` wrote."""

from __future__ import annotations

import argparse
import json

from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .drawing import plt, save, styles, token_axis


MEASURES = {
    "prefill_seconds": "seconds until the first token",
    "seconds_per_token": "seconds per token",
    "peak_memory_gb": "peak memory (GB)",
}
# What the ways of the benchmark are to readers
NAMES = {"focus": "adapter, chunks in parallel", "one by one": "adapter, one chunk at a time"}


def scaling(args: argparse.Namespace) -> None:
    ways = json.loads(args.results.read_text(encoding="utf-8"))["ways"]
    rows = [(name.split(",")[0], values) for name, values in ways.items() if values.get("tokens")]
    if not rows:
        raise SystemExit(f"error: `--results` {str(args.results)!r} was not written by `benchmark.py scaling`.")
    measures = [measure for measure in MEASURES if any(values.get(measure) is not None for _, values in rows)]
    figure, panels = plt.subplots(1, len(measures), figsize=(3.6 * len(measures), 3.4), layout="constrained")
    for way, style in styles(list(dict.fromkeys(way for way, _ in rows))).items():
        mine = sorted((values for name, values in rows if name == way), key=lambda values: values["tokens"])
        for panel, measure in zip(panels, measures):
            known = [(values["tokens"], values[measure]) for values in mine if values.get(measure) is not None]
            panel.plot(
                [length for length, _ in known], [value for _, value in known], **style, label=NAMES.get(way, way)
            )
    for panel, measure in zip(panels, measures):
        panel.set(yscale="log", title=MEASURES[measure])
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_formatter(NullFormatter())
        token_axis(panel, sorted({values["tokens"] for _, values in rows}))
    panels[0].legend(frameon=False, fontsize=8)
    save(figure, args.output)
