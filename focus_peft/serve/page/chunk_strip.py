"""How much attention each chunk has, as a strip of cells."""

from __future__ import annotations

import html
from collections.abc import Sequence


# Characters of a chunk in the title of its cell
FIRST_WORDS = 80


def strip(shares: Sequence[float] | None, texts: Sequence[str], number: str | None = None) -> str:
    """A cell for each chunk, the stronger its color the more it was looked at, as HTML.

    Args:
        shares (`Sequence[float]`, *optional*): Of attention, one for each chunk. None: nothing was asked yet.
        texts (`Sequence[str]`): Of the chunks.
        number (`str`, *optional*): What is hidden; the chunk that holds it gets a frame.
    """
    if not texts:
        return ""
    cells, hidden = [], [index for index, text in enumerate(texts) if number is not None and number in text]
    largest = max([1e-9, *(shares or [])])
    for index, text in enumerate(texts):
        shade = shares[index] / largest if shares else 0.0
        words = " ".join(text[: 4 * FIRST_WORDS].split())[:FIRST_WORDS]
        looked = "" if shares is None else f" ({shares[index]:.1%} of the attention)"
        title = html.escape(f"Chunk {index + 1}{looked}: {words} …", quote=True)
        kind = "chunk holds" if index in hidden else "chunk"
        cells.append(
            f'<span class="{kind}" data-chunk="{index + 1}" title="{title}" style="--shade:{shade:.3f}"></span>'
        )
    caption = legend(shares, hidden)
    return (
        f'<div class="chunks" role="img" aria-label="{html.escape(caption, quote=True)}">{"".join(cells)}</div>'
        f'<p class="caption" aria-hidden="true">{html.escape(caption)}</p>'
    )


def legend(shares: Sequence[float] | None, hidden: Sequence[int]) -> str:
    """The strip in words."""
    if shares is None:
        text = (
            "One cell for each chunk, from the first to the last. Ask something to see which ones the answer looks at."
        )
    else:
        most = sorted(range(len(shares)), key=lambda index: -shares[index])[:3]
        named = ", ".join(f"{index + 1} ({shares[index]:.1%})" for index in most)
        text = (
            f"The stronger the color, the more the first word of the answer looked at the chunk. Most: {named}; "
            f"{max(0.0, 1 - sum(shares)):.0%} of the attention went to the local window."
        )
    if hidden:
        text += f" The frame is around chunk {hidden[0] + 1}, where the sentence is hidden."
    return text
