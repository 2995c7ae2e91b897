"""What each token of an answer looks at: the attention that every chunk's candidate has (the paper's appendix H)."""

from __future__ import annotations

import argparse
import json
import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import torch
from demos.asking import question_text
from evaluating.configuration import Evaluation, tokens_of
from matplotlib.patches import Patch

from focus_peft.decoding.cache import FocusCache
from focus_peft.tasks.passkey import INFORMATION, passkey_prompt

from .drawing import plt, save


def attention(args: argparse.Namespace) -> None:
    """Read a prompt with the adapter of an evaluation, and draw; the numbers are written beside the picture."""
    if args.output.suffix == ".json":
        raise SystemExit(
            f"error: `--output` is {str(args.output)!r}, where the numbers go; name an .svg or .png file."
        )
    from evaluate import load  # which is a package's name, too: only where it is wanted

    try:
        model, tokenizer = load(Evaluation.load(args.config, args.overrides))
        ids, fact = prompt(args, tokenizer)
        found = measure(model, tokenizer, ids, fact, 1 if args.first else args.new_tokens)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.with_suffix(".json").write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", "utf-8")
    save(figure_of(found), args.output)


def prompt(args: argparse.Namespace, tokenizer: Any) -> tuple[list[int], str | None]:
    """Ids, and what stands in them that is asked for, if it is known."""
    if args.document is None:
        made = passkey_prompt(tokenizer, tokens_of(args.tokens), args.depth, args.seed)
        return made.ids[0].tolist(), INFORMATION.format(key=made.key)
    if args.question is None:
        raise ValueError("`--document` needs a `--question` about it; give one.")
    text = args.document.read_text(encoding="utf-8") + question_text(args.question)
    return tokenizer(text, verbose=False)["input_ids"], args.fact


def measure(model: Any, tokenizer: Any, ids: list[int], fact: str | None, new_tokens: int) -> dict[str, Any]:
    """Decode greedily, and note what each token looked at.

    Args:
        model (`PeftModel`): With a focus adapter.
        tokenizer: The model's.
        ids (`list[int]`): The prompt.
        fact (`str`, *optional*): A piece of its text: the chunks that hold it are named.
        new_tokens (`int`): The longest answer.

    Returns:
        What goes to the JSON. `attention` of a token is the share of each chunk's candidate, mean over heads and layers, when the
        token was predicted; the rest up to 1 was the local window's.

    Raises:
        ValueError: if the prompt has no chunks, or `fact` does not stand in it once.
    """
    tuner = model.base_model
    settings = tuner.settings()
    memory = len(ids) - settings.sizes.local
    if memory <= 0:
        raise ValueError(
            f"The prompt has {len(ids)} tokens, which all fit the local window of {settings.sizes.local}, so there are no chunks; "
            "give a longer one, or a smaller `focus.local_size`."
        )
    chunks = None if fact is None else chunks_with(tokenizer, ids, memory, settings.sizes.chunk, fact)
    model.chunk_attention(
        torch.tensor([ids[-settings.sizes.local :]], device=model.device)
    )  # refuses what cannot be seen
    ends = model.get_base_model().generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
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
    colours = ["black" if chunk in marked else "0.75" for chunk in range(width)]
    bars.bar(range(width), grid[0], color=colours, edgecolor="black", linewidth=0.5)
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
