"""A moving picture of the demo, from a real run: chunks light up as the answer's tokens attend to them.

    python recipes/demos/record.py --output docs/demo.svg
    python recipes/demos/record.py --tokens 30000 --new-tokens 8 --output docs/demo.svg

The script hides a sentence in the Python reference as the demo does, answers, and asks `chunk_attention` for each
token of the answer how much the model attends to each chunk. The SVG is animated with CSS alone; whoever prefers
reduced motion sees the whole answer.
"""

from __future__ import annotations

import argparse
import html
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demos.model import ADAPTER, load
from demos.shades import shades
from focus_peft.tasks.needle import NEEDLE, QUESTION, haystack, prompt_ids


FRAME = 0.9  # seconds of one token
START, PAUSE = 2, 3  # frames before the answer, and for which the whole answer stands
WIDTH, MARGIN, TOP = 760, 20, 96
PER_ROW, HEIGHT, GAP = 16, 34, 5  # of chunks


@dataclass
class Recording:
    """What one run answered, and what each token of the answer attended to.

    Attributes:
        tokens (`list[str]`): The answer's tokens.
        shares (`list[list[float]]`): For each token, the share of attention of each chunk.
        holder (`int`): The chunk that holds the hidden sentence.
        document (`int`): Tokens of the document and the question.
        local (`int`): Tokens of the local window.
        chunk (`int`): Tokens of a chunk.
    """

    tokens: list[str]
    shares: list[list[float]]
    holder: int
    document: int
    local: int
    chunk: int


def record(model: Any, tokenizer: Any, tokens: int, new_tokens: int, seed: int) -> Recording:
    """Run the demo on about `tokens` tokens, and note the attention of every token of the answer."""
    text, number = haystack(tokenizer, tokens, seed)
    ids = torch.tensor([prompt_ids(tokenizer, text, QUESTION)])
    local = model.settings().sizes.local
    memory, window = model.encode(ids[:, :-local]), ids[:, -local:]
    output = model.generate(
        window,
        attention_mask=torch.ones_like(window),
        memory=memory,
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=tokenizer.eos_token_id,
    )
    shares = []
    for end in range(local, output.shape[1]):
        (row,) = model.chunk_attention(output[:, :end], memory=memory, local_size=local + new_tokens)
        shares.append(row.tolist())
    answer = [tokenizer.decode(token) for token in output[0, local:]]
    size, document = memory.chunk_size, memory.documents[0]
    chunks = [tokenizer.decode(document[start : start + size]) for start in range(0, len(document), size)]
    holder = next(index for index, chunk in enumerate(chunks) if number in chunk)
    return Recording(answer, shares, holder, ids.shape[1], local, memory.chunk_size)


def animation(recording: Recording, needle: str) -> str:
    """The recording as an SVG."""
    chunks, frames = len(recording.shares[0]), START + len(recording.shares) + PAUSE
    below = TOP + -(-chunks // PER_ROW) * (HEIGHT + GAP) + 26
    shaded = [shades(row) for row in recording.shares]
    boxes = [_chunk(n, [row[n] for row in shaded], chunks, n == recording.holder) for n in range(chunks)]
    tokens = [_token(step, token, frames) for step, token in enumerate(recording.tokens)]
    styles = [
        f".t,.c{{animation:{frames * FRAME:.1f}s step-end infinite}}",
        *(style for style, _ in boxes + tokens),
        "@media(prefers-reduced-motion:reduce){.t,.c{animation:none}}",
    ]
    sizes = f"{chunks} chunks of {recording.chunk:,}, and a local window of {recording.local}"
    total = f"{recording.document:,} tokens: {sizes}"
    note = (
        "The darker a chunk, the more attention it has from the token that predicts the next (parts of the largest "
        "share)."
    )
    lines = [
        f'<text x="{MARGIN}" y="28" font-weight="bold">{total}</text>',
        f'<text x="{MARGIN}" y="52">▼ the chunk that holds “{html.escape(needle.strip())}”</text>',
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
    _, number = haystack(tokenizer, args.tokens, args.seed)
    args.output.write_text(animation(recording, NEEDLE.format(number=number)), encoding="utf-8")
    print(f"{args.output}: {''.join(recording.tokens)!r}, {args.output.stat().st_size / 1000:.0f} kB")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="an .svg file")
    parser.add_argument("--tokens", type=int, default=8000, help="length of the Python reference (default: 8000)")
    parser.add_argument("--new-tokens", type=int, default=7, help="tokens of the answer (default: 7)")
    parser.add_argument("--adapter", type=Path, default=ADAPTER, help="default: the one in hub/")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: the faster one on this machine")
    parser.add_argument("--seed", type=int, default=0, help="chooses the hidden number and its place")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_args())
