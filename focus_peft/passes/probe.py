"""A check, once and on a few tokens, that a model reads as the method needs: no model is ever silently read wrong."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import torch
from torch import nn
from transformers import PreTrainedModel

from ..frozen.facts import embedding_count
from ..frozen.weights import is_plain
from ..kv.pass_caches import PassCache
from ..kv.store import KeyValueStore
from .chunk_pass import candidate_places, chunk_batches, read_candidates, select_candidates
from .frames import Frames
from .inputs import ChunkRow, PassInput
from .local_pass import local_pass_input
from .one_pass import read_in_one_pass
from .prompt_region import PromptRegion
from .reader import Reader


# Tokens that stand in the cache, columns that are hidden, and tokens that are read behind them
HELD, HIDDEN, NEW = 4, 3, 3
# The largest root mean square difference that counts as rounding, in standard deviations of the logits. (Not the
# largest difference of any logit: among 50,000 of a deep model in bfloat16, that alone is 0.3.)
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3}
HALF_TOLERANCE = 0.25
_lock = threading.Lock()  # the first calls of a model may come from threads


def check_weights(reader: Reader, twins: Iterable[nn.Parameter], adapter: str) -> None:
    """Raise a ValueError if there are no weights to read with: the model's, or the twins' of `adapter`."""
    if reader.device.type == "meta":
        raise ValueError(
            f"{type(reader.model).__name__} is on the meta device, which holds no weights; load it with "
            "`from_pretrained`, or give it weights with `load_state_dict(..., assign=True)` before it is wrapped."
        )
    if any(twin.device.type == "meta" for twin in twins):
        raise ValueError(
            f"The twins of adapter {adapter!r} are on the meta device, which holds no weights: "
            "`low_cpu_mem_usage=True` is for adapters that are loaded from a file; leave it out in `get_peft_model`."
        )


def check_reading(reader: Reader, frames: Frames) -> None:
    """Read a few tokens in two pieces, with shifted positions and hidden garbage between them, and compare with
    reading at once.

    A model that ignores a mask, counts its keys, or whose positions cannot be shifted computes something else.

    Raises:
        ValueError: if the logits differ.
    """
    with _lock:
        problem = _problem(reader, frames)
        if (
            problem is not None and reader.groups
        ):  # a model that does not take the exchanged attention may take its own
            reader.groups = False
            problem = _problem(reader, frames)
        # in one pass or in two, the result is the same; a model that cannot do with one takes two
        reader.reads_in_parts = problem is None and reader.reads_in_parts and _agrees_in_parts(reader, frames)
    if problem is not None:
        raise ValueError(
            f"{type(reader.model).__name__} cannot be read in chunks: with shifted positions and a mask of its own "
            f"for each token, {problem}. Only models whose attention follows `position_ids` and a 4D "
            "`attention_mask`, or counts its keys (ALiBi), are supported."
        )


def _problem(reader: Reader, frames: Frames) -> str | None:
    """What is wrong, if anything."""
    model = reader.model
    vocabulary = embedding_count(model)
    ids = torch.arange(HELD + NEW)[None] * 7 % vocabulary
    with torch.no_grad():
        expected = reader.plain_logits(ids.to(reader.device), NEW)[0].float()
        try:
            got = _read_in_pieces(reader, frames, ids)[0].float()
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            return f"it fails ({type(error).__name__}: {error})"
    difference = _difference(got, expected)
    if not difference <= _tolerance(model, reader.device):
        return f"its logits differ by {difference:.2g} standard deviations"
    return None


def _difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square, in standard deviations."""
    return float((got - expected).square().mean().sqrt() / expected.std().clamp_min(1e-6))


def _tolerance(model: PreTrainedModel, device: torch.device) -> float:
    """Quantized layers may round what they are given, and autocast does; how depends on all tokens of a pass."""
    linear = (module for module in model.modules() if isinstance(module, nn.Linear))
    if torch.is_autocast_enabled(device.type) or not all(map(is_plain, linear)):
        return HALF_TOLERANCE
    return TOLERANCE.get(model.dtype, HALF_TOLERANCE)


def _read_in_pieces(reader: Reader, frames: Frames, ids: torch.Tensor) -> torch.Tensor:
    """Logits (1, `NEW`, vocabulary) of the last tokens of ids (1, `HELD + NEW`)."""
    start = Frames(2, frames.learned, frames.offset).chunk_start(0, HELD)  # without an offset, on both sides of 0
    store = KeyValueStore(1, HELD + HIDDEN + NEW)
    reader.read_chunks(store, 0, [ids[0, :HELD].tolist()], [start])
    reader.formats = [([k.shape[1], k.shape[3]], [v.shape[1], v.shape[3]]) for k, v in store.layers]
    for keys, values in store.layers:
        keys[:, :, HELD:] = values[:, :, HELD:] = 1.0  # garbage that must not be seen
    # keys in an order of their own: only mask and positions may count
    columns = torch.arange(HELD + HIDDEN, HELD + HIDDEN + NEW).flip(0)
    place = torch.cat([torch.arange(HELD), torch.full((HIDDEN,), HELD + NEW), HELD + torch.arange(NEW).flip(0)])
    query = HELD + torch.arange(NEW)
    visible = query[None, :, None] >= place[None, None]
    inputs = PassInput(ids[:, HELD:], start + query[None], columns[None], visible, query[None], place[None])
    return reader.run(inputs, PassCache(store, slice(0, 1), columns[None], slice(0, store.columns)), logits=NEW)


def _agrees_in_parts(reader: Reader, frames: Frames) -> bool:
    """Whether two chunks and a local window give in one pass what they give in two."""
    vocabulary = embedding_count(reader.model)
    ids = (torch.arange(2 * HELD + NEW) * 7 % vocabulary).tolist()
    frames = Frames(NEW, frames.learned, frames.offset)
    rows = [ChunkRow(0, index, HELD) for index in range(2)]
    window, start = ids[2 * HELD :], frames.local_start(2, NEW)
    logits = []
    with torch.no_grad():
        for together in (False, True):
            store, local = KeyValueStore(2, HELD + NEW + 1), KeyValueStore(1, 2 + NEW + 1)
            starts = [frames.chunk_start(row.index, HELD) for row in rows]
            reader.read_chunks(store, 0, [ids[:HELD], ids[HELD : 2 * HELD]], starts)
            placement = PromptRegion(1).place([window], [0], 1)
            batches = list(chunk_batches(reader, [(store, rows, 0)], frames, {0: placement}, None))
            inputs = local_pass_input([window], [0], [start], [2], 1, False, 2, local.columns - 1)
            cache = PassCache(local, slice(0, 1), inputs.columns, slice(0, 2 + NEW), prefix_end=2)
            if together:
                try:
                    places = candidate_places([[0, 1]], [0], 1)
                    found = read_in_one_pass(reader, batches, 1, (inputs, cache), places)[:, -1:]
                except (IndexError, RuntimeError, TypeError, ValueError):
                    return False
            else:
                pool = read_candidates(reader, batches, 1)
                cache.prefix = select_candidates(pool, *candidate_places([[0, 1]], [0], 1))
                found = reader.run(inputs, cache, logits=1)
            logits.append(found[0].float())
    return _difference(logits[1], logits[0]) <= _tolerance(reader.model, reader.device)
