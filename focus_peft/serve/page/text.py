"""What the page says about a document and a reply, as HTML."""

from __future__ import annotations

import html

from ...tasks.needle import NEEDLE
from .session import Reading, Reply


def summary(reading: Reading, local_size: int) -> str:
    """What was read."""
    document, count, seconds = reading.document, len(reading.chunks), max(reading.seconds, 1e-9)
    text = f"<p><b>{html.escape(document.name)}</b>: {document.tokens:,} tokens"
    if not reading.chunks:
        return (
            f"{text}. They fit the local window of {local_size}, so the model can see all of them by itself, and the "
            "adapter adds nothing.</p>"
        )
    text += (
        f", read in {seconds:,.1f} s ({document.tokens / seconds:,.0f} tokens/s) into "
        f"{count} chunk{'s' if count > 1 else ''}, which take {reading.nbytes / 1e6:,.1f} MB.</p>"
    )
    if reading.number is not None:
        text += f"<p>The hidden sentence: <q>{NEEDLE.format(number=reading.number).strip()}</q></p>"
    return text


def speed(reading: Reading, reply: Reply) -> str:
    """How fast a whole reply was, and whether it is right if that is known."""
    read = reply.in_full.read
    numbers = ", ".join(str(chunk + 1) for chunk in read)
    chunks = f"chunk{'s' if len(read) > 1 else ''} {numbers}" if read else "no chunk"
    text = (
        f"<p>{reply.alone.rate:.1f} tokens/s alone, {reply.adapter.rate:.1f} tokens/s with the adapter, "
        f"{reply.in_full.rate:.1f} tokens/s with {chunks} in full.</p>"
    )
    if reading.number is not None:
        answers = {"the model alone": reply.alone, "the adapter": reply.adapter, "reading in full": reply.in_full}
        found = [f"{who} {'finds' if reading.number in its.text else 'misses'} it" for who, its in answers.items()]
        text = f"<p>The hidden number is {reading.number}: {', '.join(found)}.</p>{text}"
    return text
