"""What each token of an answer looks at: the attention that every chunk's candidate has (the paper's appendix H)."""

from __future__ import annotations

import argparse
import math
from typing import Any

from evaluating.configuration import Evaluation, tokens_of
from evaluating.evaluator import load
from lib.result_files import write_json
from matplotlib.patches import Patch

from focus_peft.tasks.needle import question_text
from focus_peft.tasks.passkey import INFORMATION, passkey_prompt

from .attention_shares import measure
from .drawing import plt, save


def attention(args: argparse.Namespace) -> None:
    """Read a prompt with the adapter of an evaluation, and draw; the numbers are written beside the picture."""
    if args.output.suffix == ".json":
        raise SystemExit(
            f"error: `--output` is {str(args.output)!r}, where the numbers go; name an .svg or .png file."
        )
    try:
        model, tokenizer = load(Evaluation.load(args.config, args.overrides))
        ids, fact = prompt(args, tokenizer)
        found = measure(model, tokenizer, ids, fact, args.new_tokens)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    write_json(args.output.with_suffix(".json"), found)
    save(figure_of(found), args.output)


def prompt(args: argparse.Namespace, tokenizer: Any) -> tuple[list[int], str | None]:
    """Ids, and what stands in them that is asked for, if it is known."""
    if args.document is None:
        made = passkey_prompt(tokenizer, tokens_of(args.tokens, "--tokens"), args.depth, args.seed)
        return made.ids[0].tolist(), INFORMATION.format(key=made.key)
    if args.question is None:
        raise ValueError("`--document` needs a `--question` about it; give one.")
    text = args.document.read_text(encoding="utf-8") + question_text(args.question)
    return tokenizer(text, verbose=False)["input_ids"], args.fact


def figure_of(found: dict[str, Any]) -> Any:
    """Bars for the first token, and a row of shades for each token."""
    answer, marked = found["answer_tokens"], found["chunks_with_the_fact"] or []
    width = max(len(entry["attention"]) for entry in answer)
    grid = [entry["attention"] + [math.nan] * (width - len(entry["attention"])) for entry in answer]
    rows = len(grid)
    figure, (bars, shades) = plt.subplots(
        2,
        1,
        figsize=(min(12.0, 4.5 + 0.12 * width), 3.4 + 0.26 * rows),
        sharex=True,
        height_ratios=[2.2, 0.6 + 0.26 * rows],
        layout="constrained",
    )
    colors = ["black" if chunk in marked else "0.75" for chunk in range(width)]
    bars.bar(range(width), grid[0], color=colors, edgecolor="black", linewidth=0.5)
    if marked:
        handles = [Patch(color="black", label="holds the fact")]
        handles.append(Patch(facecolor="0.75", edgecolor="black", linewidth=0.5, label="other chunks"))
        bars.legend(handles=handles, frameon=False, fontsize=8, ncols=2)
        bars.set_ylim(0, 1.25 * max(grid[0]))  # room for the legend
    bars.set(ylabel="share of attention", title=f"The first token of the answer to {found['tokens']:,} tokens")
    image = shades.imshow(grid, cmap="Greys", vmin=0, aspect="auto", interpolation="nearest")
    for chunk in marked:  # marks stand outside, where no shade hides them
        shades.annotate("▲", (chunk, 0), (chunk, -0.02), xycoords=shades.get_xaxis_transform(), ha="center", va="top")
    shades.set_yticks(range(rows), [_visible(entry["token"]) for entry in answer], fontsize=8)
    shades.tick_params(axis="x", pad=14 if marked else 3)
    shades.set(xlabel="chunk" + (" (▲ holds the fact)" if marked else ""), ylabel="token of the answer")
    shades.xaxis.get_major_locator().set_params(integer=True)
    figure.colorbar(image, ax=shades, label="share")
    return figure


def _visible(token: str) -> str:
    return repr(token).replace("$", r"\$")  # no formula
