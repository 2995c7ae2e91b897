"""What the demo's page says about a document and a reply, as HTML."""

from __future__ import annotations

import html

import torch

from demos.questions import NEEDLE
from demos.session import Document, Reply
from focus_peft.trainer.metrics import peak_memory


def summary(document: Document, local_size: int) -> str:
    """What was read, as HTML."""
    name = html.escape(document.name)
    if document.memory is None:
        return (
            f"<p><b>{name}</b>: {document.tokens:,} tokens. They fit the local window of {local_size}, so the model "
            "can see all of them by itself, and the adapter adds nothing.</p>"
        )
    memory, seconds = document.memory, max(document.seconds, 1e-9)
    text = (
        f"<p><b>{name}</b>: {document.tokens:,} tokens, read in {seconds:,.1f} s "
        f"({memory.num_tokens / seconds:,.0f} tokens/s) into {memory.num_chunks} chunks of {memory.chunk_size}, which "
        f"take {_bytes(memory.nbytes)}. The last {document.end.shape[1]} tokens stand beside the question.</p>"
    )
    if document.number is not None:
        text += f"<p>The hidden sentence: <q>{NEEDLE.format(number=document.number).strip()}</q></p>"
    return text


def speed(document: Document, reply: Reply) -> str:
    """How fast a whole reply was, whether it is right if that is known, and the memory, as HTML."""
    text = (
        f"<p>{reply.alone.rate:.1f} tokens/s alone, {reply.adapter.rate:.1f} tokens/s with the adapter, "
        f"{reply.reading.rate:.1f} tokens/s with {_chunks(reply.reading.read)} in full; "
        f"{_bytes(peak_memory(torch.device('cpu')))} of memory at most, all in all.</p>"
    )
    if document.number is not None:
        found = [
            f"{who} {'finds' if document.number in answer.text else 'misses'} it"
            for who, answer in (
                ("the model alone", reply.alone),
                ("the adapter", reply.adapter),
                ("reading in full", reply.reading),
            )
        ]
        text = f"<p>The hidden number is {document.number}: {', '.join(found)}.</p>{text}"
    return text


def _chunks(read: list[int]) -> str:
    """The chunks that were read, by their numbers from 1."""
    return f"chunk{'s' if len(read) > 1 else ''} {', '.join(str(chunk + 1) for chunk in read)}" if read else "no chunk"


def _bytes(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"
