"""A moving picture of the demo, from a real run: chunks light up as the answer's tokens attend to them.

    python recipes/demos/record.py --output docs/demo.svg
    python recipes/demos/record.py --tokens 30000 --new-tokens 8 --output docs/demo.svg

The script hides a sentence in the Python reference as the demo does, answers, and notes for each token of the answer
how much the model attends to each chunk. The SVG is animated with CSS alone; whoever prefers reduced motion sees the
whole answer.
"""

from __future__ import annotations

import argparse
import html
import sys
from pathlib import Path
from typing import Any

import torch


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.command_line import parser_of
from plots.attention_shares import measure

from demos.model import ADAPTER, load
from focus_peft.tasks.needle import NEEDLE, QUESTION, haystack, prompt_ids


FRAME = 0.9  # seconds of one token
START, PAUSE = 2, 3  # frames before the answer, and for which the whole answer stands
WIDTH, MARGIN, TOP = 760, 20, 96
PER_ROW, HEIGHT, GAP = 16, 34, 5  # of chunks


def record(model: Any, tokenizer: Any, tokens: int, new_tokens: int, seed: int) -> dict[str, Any]:
    """Run the demo on about `tokens` tokens. What [`measure`] returns, with the hidden sentence as the fact."""
    text, number = haystack(tokenizer, tokens, seed)
    needle = NEEDLE.format(number=number).strip()
    return measure(model, tokenizer, prompt_ids(tokenizer, text, QUESTION), needle, new_tokens)


def animation(recording: dict[str, Any]) -> str:
    """The recording as an SVG."""
    answer = recording["answer_tokens"]
    chunks, frames = len(answer[0]["attention"]), START + len(answer) + PAUSE
    below = TOP + -(-chunks // PER_ROW) * (HEIGHT + GAP) + 26
    shares = torch.tensor([token["attention"] for token in answer])
    levels = (shares / shares.amax(1, keepdim=True)).T.tolist()
    boxes = [_chunk(n, row, chunks, n in recording["chunks_with_the_fact"]) for n, row in enumerate(levels)]
    tokens = [_token(step, token["token"], frames) for step, token in enumerate(answer)]
    styles = [
        f".t,.c{{animation:{frames * FRAME:.1f}s step-end infinite}}",
        *(style for style, _ in boxes + tokens),
        "@media(prefers-reduced-motion:reduce){.t,.c{animation:none}}",
    ]
    sizes = f"{chunks} chunks of {recording['chunk_size']:,}, and a local window of {recording['local_size']}"
    total = f"{recording['tokens']:,} tokens: {sizes}"
    note = (
        "The darker a chunk, the more attention it has from the token that predicts the next (parts of the largest "
        "share)."
    )
    lines = [
        f'<text x="{MARGIN}" y="28" font-weight="bold">{total}</text>',
        f'<text x="{MARGIN}" y="52">▼ the chunk that holds “{html.escape(recording["fact"])}”</text>',
        *(box for _, box in boxes),
        f'<text x="{MARGIN}" y="{below}">{html.escape(QUESTION)}</text>',
        f'<text x="{MARGIN}" y="{below + 26}" font-weight="bold" xml:space="preserve">',
        "".join(token for _, token in tokens) + "</text>",
        f'<text x="{MARGIN}" y="{below + 50}" font-size="12" fill="#555">{note}</text>',
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {below + 66}" width="{WIDTH}" '
        f'height="{below + 66}" role="img" aria-labelledby="title" font-family="Helvetica, Arial, sans-serif" '
        'font-size="14" fill="#000"><title id="title">Each token of the answer attends to the chunks; the darkest '
        f"holds the hidden sentence.</title><style>{''.join(styles)}</style>"
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(lines)}</svg>\n'
    )


def _chunk(number: int, levels: list[float], chunks: int, holds: bool) -> tuple[str, str]:
    """(style, shapes) of a chunk: a box that is as dark as its levels, one after another; the last one stays."""
    columns = min(chunks, PER_ROW)
    width = (WIDTH - 2 * MARGIN - (columns - 1) * GAP) / columns
    x, y = MARGIN + number % PER_ROW * (width + GAP), TOP + number // PER_ROW * (HEIGHT + GAP)
    frames = START + len(levels) + PAUSE
    shown = enumerate([0.0] * START + levels)
    steps = [f"{100 * step / frames:.2f}%{{fill-opacity:{level:.2f}}}" for step, level in shown]
    steps.append(f"100%{{fill-opacity:{levels[-1]:.2f}}}")
    style = f"@keyframes c{number}{{{''.join(steps)}}}#c{number}{{animation-name:c{number}}}"
    box = f'x="{x:.1f}" y="{y}" width="{width:.1f}" height="{HEIGHT}" rx="3"'
    shapes = (
        f'<rect {box} fill="#fff" stroke="#888"/>'
        f'<rect id="c{number}" class="c" {box} fill="#1f4e9e" fill-opacity="{levels[-1]:.2f}"/>'
    )
    if holds:
        shapes += f'<text x="{x + width / 2:.1f}" y="{y - 6}" text-anchor="middle">▼</text>'
    return style, shapes


def _token(step: int, token: str, frames: int) -> tuple[str, str]:
    """(style, text) of a token of the answer, which appears at its step."""
    begin = 100 * (START + step) / frames
    shown = f"0%{{fill-opacity:0}}{begin:.2f}%{{fill-opacity:1}}100%{{fill-opacity:1}}"
    style = f"@keyframes t{step}{{{shown}}}#t{step}{{animation-name:t{step}}}"
    return style, f'<tspan id="t{step}" class="t">{html.escape(token)}</tspan>'


def main(args: argparse.Namespace) -> None:
    model, tokenizer = load(args.adapter, args.dtype)
    recording = record(model, tokenizer, args.tokens, args.new_tokens, args.seed)
    args.output.write_text(animation(recording), encoding="utf-8")
    print(f"{args.output}: {recording['answer']!r}, {args.output.stat().st_size / 1000:.0f} kB")


def parse_args() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--output", type=Path, required=True, help="an .svg file")
    parser.add_argument("--tokens", type=int, default=8000, help="length of the Python reference (default: 8000)")
    parser.add_argument("--new-tokens", type=int, default=7, help="tokens of the answer (default: 7)")
    parser.add_argument("--adapter", type=Path, default=ADAPTER, help="default: the one in hub/")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: the faster one on this machine")
    parser.add_argument("--seed", type=int, default=0, help="chooses the hidden number and its place")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_args())
