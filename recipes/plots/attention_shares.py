"""The attention that each chunk has from each token of an answer."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import torch

from focus_peft.decoding.cache import FocusCache
from focus_peft.tasks.methods.base import end_tokens


def measure(model: Any, tokenizer: Any, ids: list[int], fact: str | None, new_tokens: int) -> dict[str, Any]:
    """Decode greedily, and note what each token looked at.

    Args:
        model (`PeftModel`): With a focus adapter.
        tokenizer: The model's.
        ids (`list[int]`): The prompt.
        fact (`str`, *optional*): A piece of its text: the chunks that hold it are named.
        new_tokens (`int`): The longest answer.

    Returns:
        What goes to the JSON. `attention` of a token is the share of each chunk's candidate, mean over heads and
        layers, when the token was predicted; the rest up to 1 was the local window's.

    Raises:
        ValueError: if the prompt has no chunks, or `fact` does not stand in it once.
    """
    tuner = model.base_model
    settings = tuner.settings()
    memory = len(ids) - settings.sizes.local
    if memory <= 0:
        raise ValueError(
            f"The prompt has {len(ids)} tokens, which all fit the local window of {settings.sizes.local}, so there "
            "are no chunks; give a longer one, or a smaller `focus.local_size`."
        )
    chunks = None if fact is None else chunks_with(tokenizer, ids, memory, settings.sizes.chunk, fact)
    model.chunk_attention(
        torch.tensor([ids[-settings.sizes.local :]], device=model.device)
    )  # refuses what cannot be seen
    ends = end_tokens(model.get_base_model())
    cache = FocusCache(tuner.reader, settings, 1)
    cache.records_attention = True
    given, answer = ids, []
    with torch.no_grad():
        for _ in range(new_tokens):
            token = int(cache.read([given], 1)[0, -1].argmax())
            looked = cache.chunk_attention[0].tolist()
            answer.append({"id": token, "token": tokenizer.decode([token]), "attention": looked})
            given = [token]
            if token in ends:
                break
    return {
        "tokens": len(ids),
        "chunk_size": settings.sizes.chunk,
        "local_size": settings.sizes.local,
        "prompt_size": settings.sizes.prompt,
        "decoding": settings.config.decoding,
        "fact": fact,
        "chunks_with_the_fact": chunks,
        "answer": tokenizer.decode([entry["id"] for entry in answer], skip_special_tokens=True),
        "answer_tokens": answer,
    }


def chunks_with(tokenizer: Any, ids: list[int], memory: int, chunk_size: int, fact: str) -> list[int]:
    """The chunks that hold a piece of text, none if it stands in the local window.

    Args:
        tokenizer: Decodes.
        ids (`list[int]`): The prompt.
        memory (`int`): Its first so many tokens are cut into chunks of `chunk_size`.
        fact (`str`): The piece.

    Raises:
        ValueError: if it does not stand in the text exactly once.
    """

    def text(piece: Sequence[int]) -> str:
        return tokenizer.decode(piece, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    times = text(ids).count(fact)
    if times != 1:
        raise ValueError(
            f"`fact` {fact!r} stands {times} times in the prompt; give a piece of it that stands there once."
        )
    count = math.ceil(memory / chunk_size)
    places = range(count + 1)  # the last is the local window
    starts = [min(place * chunk_size, memory) for place in places]
    ends = [*starts[1:], len(ids)]
    last = bisect_left(places, True, key=lambda place: fact in text(ids[: ends[place]]))
    first = bisect_left(places, True, key=lambda place: fact not in text(ids[starts[place] :])) - 1
    return [place for place in range(first, last + 1) if place < count]
