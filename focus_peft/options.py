"""The options of a focus adapter, without what loads PEFT and torch: a command can list them at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from .fields import (
    FLAG,
    FLAG_OR_NONE,
    FOLDER,
    LAYERS,
    SCALE,
    SHARE,
    SIZE,
    SIZE_OR_NONE,
    WEIGHT,
    declared,
    declared_fields,
    one_of,
)


# The label of a token that is not to be predicted
IGNORE = -100
# Where the keys and values of chunks may be
STORAGES = ("device", "cpu", "int8", "disk")


ADAPTER = "the adapter"
WINDOWS = "the windows"
DECODING = "decoding"
LOSS = "the training loss"


_adapter = partial(declared, ADAPTER)
_windows = partial(declared, WINDOWS, per_call=True)
_decoding = partial(declared, DECODING, per_call=True)
_loss = partial(declared, LOSS)


@dataclass
class FocusOptions:
    """The fields of `FocusConfig`."""

    target_modules: list[str] | str | None = _adapter(
        None,
        None,
        "The projections that get a twin: names (matched at the end of the module's path) or, as a string, a regular "
        "expression for the whole path. Defaults to q, k, v and o of every attention module, fused ones included, "
        "found by structure.",
    )
    exclude_modules: list[str] | str | None = _adapter(
        None, None, "Projections that get no twin, named like `target_modules`. Defaults to none."
    )
    layers_to_transform: list[int] | int | None = _adapter(
        None,
        LAYERS,
        "The layers whose projections get a twin, by their number. Not where `target_modules` is a regular "
        "expression. Defaults to all.",
    )
    r: int | None = _adapter(
        None,
        SIZE_OR_NONE,
        "None: each twin is a full trainable copy of its projection (the paper's). An integer: the twin is the frozen "
        "projection plus a low-rank delta of rank `r` that starts at zero.",
    )
    alpha: float | None = _adapter(
        None, SCALE, "The delta is scaled by `alpha / r`. Only with `r`. Defaults to `2 * r`."
    )
    chunk_size: int | None = _windows(
        None,
        SIZE_OR_NONE,
        "Tokens in a chunk of the memory, c. Defaults to min(2048, max positions / 4).",
        per_call=False,
    )
    local_size: int | None = _windows(
        None,
        SIZE_OR_NONE,
        "Tokens in the local window, L. Defaults to min(2048, max positions / 4).",
    )
    prompt_size: int | None = _windows(
        None,
        SIZE_OR_NONE,
        "Tokens at the end of the local window that are appended to every chunk as the dynamic prompt, P. Defaults to "
        "min(512, `chunk_size`, `local_size`), the paper's.",
    )
    add_bos: bool | None = _windows(
        None,
        FLAG_OR_NONE,
        "Put the model's BOS, if it has one, before the dynamic prompt and before the local window, unless they "
        "already start with it. Nothing is added where there is no memory. Defaults to what the model's tokenizer "
        "does with a text, decided when the adapter is made and saved with it; where no tokenizer is found on this "
        "machine, to True, but for Qwen.",
    )
    decoding: Literal["streaming", "exact"] = _decoding(
        "streaming",
        one_of("streaming", "exact"),
        '"exact" (the paper\'s): the local window is recomputed under new candidates for every token. "streaming": '
        "local keys and values are cached, and only the newest token sees its candidates. In training it chooses the "
        'label scheme likewise: "streaming" gives every label its own candidates, "exact" one set to a block of '
        "labels.",
    )
    chunk_batch_size: int | None = _decoding(
        None,
        SIZE_OR_NONE,
        "How many chunks are read at once. Results do not depend on it. Defaults to as many as fit a token budget.",
        each_process=True,
    )
    read_chunks: int | None = _decoding(
        None,
        SIZE_OR_NONE,
        "The frozen model reads so many chunks in full: those that the end of the input attends to most, in their "
        "order in the text, in front of the local window. Candidates choose them, anew when the window grows into "
        "the memory and with each new turn. Not in training. Defaults to none: candidates stand for all chunks "
        "(the paper's).",
    )
    keep_candidates: bool = _decoding(
        True,
        FLAG,
        "With `read_chunks`: the candidates of all chunks stay in front of the chunks that are read, and are renewed "
        "for every token, which then costs what it costs without `read_chunks`, and more. False: the base model reads "
        "the chunks and the local window alone, at its own speed, and finds less.",
    )
    storage: Literal["device", "cpu", "int8", "disk"] = _decoding(
        "device",
        one_of(*STORAGES),
        'Where keys and values of chunks are kept: on the model\'s device ("device"); in CPU memory ("cpu"); on the '
        'device in 8 bits, with a scale for each token and head, which changes results a little ("int8"); or in files '
        'that are mapped into memory ("disk"). In training they are on the device.',
        each_process=True,
    )
    storage_dir: str | None = _decoding(
        None,
        FOLDER,
        'Where the files of `storage="disk"` are made; they vanish with the memory. Defaults to the system\'s '
        "directory for temporary files. It is not saved with the adapter, which may be read elsewhere.",
        each_process=True,
    )
    spread_chunks: bool = _decoding(
        False,
        FLAG,
        "Whether the processes of torch.distributed share the chunks of a memory: each holds and reads some of them, "
        "only candidates are exchanged, and all give the same result. All must make the same calls, with the same "
        "seed where tokens are sampled. Not in training.",
        each_process=True,
    )
    loss: Literal["sum", "draw"] = _loss(
        "sum",
        one_of("sum", "draw"),
        '"sum": continuation plus repetition loss (the paper\'s equation 7). "draw": one of the two for each sample, '
        "by lot, with their weights as odds (the released code).",
    )
    continuation_weight: float = _loss(1.0, WEIGHT, "Weight of the continuation loss.")
    repetition_weight: float = _loss(1.0, WEIGHT, "Weight of the repetition loss.")
    distill_weight: float = _loss(
        0.0,
        SHARE,
        "λ in (1 − λ)·cross-entropy + λ·KL(base model ‖ adapter), where the base model can read memory and window in "
        "full.",
    )
    choice_weight: float = _loss(
        0.0,
        WEIGHT,
        "Weight of the choice loss: where it is known which chunks hold a label, their share of the attention that "
        "its token pays to all candidates is to be large. For `read_chunks`, which reads the chunks that are looked "
        "at most.",
    )
    label_size: int = _loss(32, SIZE, "Consecutive label tokens of a span, for each of the two losses.")
    train_local_size: int | None = _loss(
        None,
        SIZE_OR_NONE,
        "The longest local window before the labels that training draws. In use, a window holds up to `local_size` + "
        "`chunk_size` - 1 tokens before its oldest become a chunk, and candidates may do harm behind windows longer "
        "than any used in training. Defaults to `local_size` (the paper's).",
    )
    train_min_chunk_size: int | None = _loss(
        None,
        SIZE_OR_NONE,
        "The smallest chunk size that training draws; the largest is `chunk_size`. Defaults to 64 (the paper's).",
    )


OPTIONS = declared_fields(FocusOptions)
# The options that `generate`, `encode` and `forward` take for one call
INFERENCE_FIELDS = tuple(option.name for option in OPTIONS if option.metadata["per_call"])
# What may change between training and reading: these, and the size of the chunks
READING_FIELDS = tuple(option.name for option in OPTIONS if option.metadata["group"] in (WINDOWS, DECODING))
# How tokens are decoded, as far as processes that share chunks must agree in it
SHARED_FIELDS = tuple(
    option.name for option in OPTIONS if option.metadata["group"] == DECODING and not option.metadata["each_process"]
)
