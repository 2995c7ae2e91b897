"""Whatever a memory's files hold, loading them ends in a sentence or in the memory that was saved."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_focus_model, random_ids
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel
from refusal import assert_sentence, refusal
from safetensors.torch import load_file, save_file

from focus_peft.memory.files import _checksum


DOCUMENT, QUESTION = random_ids(12, seed=1), random_ids(3, seed=2)[None]  # two chunks
JSON, STATES = "memory.json", "memory.safetensors"

fuzz = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def model() -> PeftModel:
    return make_focus_model(dtype=torch.float32)


@pytest.fixture(scope="module")
def saved(model: PeftModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a memory."""
    directory = tmp_path_factory.mktemp("memories") / "saved"
    model.encode(DOCUMENT).save(directory)
    return {name: (directory / name).read_bytes() for name in (JSON, STATES)}


@pytest.fixture(scope="module")
def expected(model: PeftModel) -> torch.Tensor:
    return answer(model, model.encode(DOCUMENT))


@torch.no_grad()
def answer(model: PeftModel, memory: Any) -> torch.Tensor:
    return model(QUESTION, memory=memory, logits_to_keep=1).logits


def outcome(model: PeftModel, directory: Path, files: dict[str, bytes]) -> torch.Tensor | None:
    """The logits of what is loaded, or None after a sentence."""
    for name, content in files.items():
        (directory / name).write_bytes(content)
    try:
        return answer(model, model.load_memory(directory))
    except ValueError as error:
        assert_sentence(str(error))
        return None


# Any bytes

places = st.integers(0, 2**16)


def _cut(content: bytes, place: int, length: int, new: bytes) -> bytes:
    place %= len(content)
    return content[:place] + new + content[place + length :]


damages: st.SearchStrategy[Callable[[bytes], bytes]] = st.one_of(
    st.builds(lambda p, new: lambda c: _cut(c, p, len(new), new), places, st.binary(min_size=1, max_size=64)),
    st.builds(lambda p, bit: lambda c: _cut(c, p, 1, bytes([c[p % len(c)] ^ 1 << bit])), places, st.integers(0, 7)),
    st.builds(lambda p, new: lambda c: _cut(c, p, 0, new), places, st.binary(min_size=1, max_size=64)),
    st.builds(lambda p, length: lambda c: _cut(c, p, length, b""), places, st.integers(1, 500)),
    st.builds(lambda p: lambda c: c[: p % len(c)], places),
    st.builds(lambda new: lambda c: c + new, st.binary(max_size=64)),
)


@settings(fuzz, max_examples=250)
@given(name=st.sampled_from([JSON, STATES]), damage=damages)
def test_damaged_bytes_end_in_a_sentence_or_in_equal_logits(
    name: str, damage: Any, model: PeftModel, saved: dict[str, bytes], expected: torch.Tensor, tmp_path: Path
) -> None:
    found = outcome(model, tmp_path, {**saved, name: damage(saved[name])})
    assert found is None or torch.equal(found, expected)


# Any description

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.integers(-3, 130)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["torch.float16", "F32", "key.0", [2, 2, 8, 8]]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def _paths(value: Any, before: tuple = ()) -> list[tuple]:
    """Where something stands in a description."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, inner in items for path in [(*before, key), *_paths(inner, (*before, key))]]


def changed(description: dict[str, Any], where: int, value: Any, remove: bool) -> dict[str, Any]:
    """A description with something in it replaced, or left out."""
    description = copy.deepcopy(description)
    paths = _paths(description)
    # every field as often as all that is in it
    path = paths[where % len(paths)] if where % 2 else (list(description)[where % len(description)],)
    inner: Any = description
    for key in path[:-1]:
        inner = inner[key]
    if remove:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return description


@pytest.mark.parametrize("signed", [False, True], ids=["as it is", "with a checksum of its own"])
def test_any_description_ends_in_a_sentence_or_in_equal_logits(
    signed: bool, model: PeftModel, saved: dict[str, bytes], expected: torch.Tensor, tmp_path: Path
) -> None:
    whole = json.loads(saved[JSON])

    @settings(fuzz, max_examples=125)
    @given(where=places, value=values, remove=st.booleans())
    def check(where: int, value: Any, remove: bool) -> None:
        description = changed(whole, where, value, remove)
        if signed and "checksum" in description:
            description["checksum"] = _checksum(description)
        found = outcome(model, tmp_path, {**saved, JSON: json.dumps(description).encode()})
        if found is not None and signed and description["nominal"] != whole["nominal"]:
            return  # another prompt size: whoever can sign can say so
        assert found is None or torch.equal(found, expected)

    check()


# What somebody might change by hand


def edited(saved: dict[str, bytes], directory: Path, **fields: Any) -> Path:
    """A folder whose description has other fields, or lacks those that are `...`, and a checksum that fits them."""
    description = {name: value for name, value in {**json.loads(saved[JSON]), **fields}.items() if value is not ...}
    description["checksum"] = _checksum(description)
    (directory / JSON).write_text(json.dumps(description))
    (directory / STATES).write_bytes(saved[STATES])
    return directory


FORGED: dict[str, tuple[dict[str, Any], str]] = {
    "nominal of nothing": ({"nominal": None}, "`nominal` is None"),
    "nominal of text": ({"nominal": "x"}, "`nominal` is 'x'"),
    "nominal of zero": ({"nominal": 0}, "`nominal` is 0"),
    "nominal past all positions": ({"nominal": 10**30}, "`nominal` 1000"),
    "nominal of true": ({"nominal": True}, "`nominal` is True"),
    "an offset": ({"offset": 7}, "`offset` 7"),
    "offset of a list": ({"offset": []}, "`offset` is []"),
    "learned positions": ({"learned": True}, "`learned` True"),
    "a negative chunk size": ({"chunk_size": -8}, "`chunk_size` is -8"),
    "chunk size of zero": ({"chunk_size": 0}, "`chunk_size` is 0"),
    "chunk size of text": ({"chunk_size": "8"}, "`chunk_size` is '8'"),
    "no documents": ({"documents": ...}, "'documents' is missing"),
    "documents of text": ({"documents": "text"}, "`documents`"),
    "documents of text in a list": ({"documents": ["words of text"]}, "`documents`"),
    "other documents": ({"documents": [[5] * 7]}, "shape"),
    "ids that are true": ({"documents": [[True] * 12]}, "`document_ids`"),
    "huge ids": ({"documents": [[10**30] * 12]}, "vocabulary"),
    "negative ids": ({"documents": [[-1] * 12]}, "vocabulary"),
    "more documents than states": ({"documents": [[5] * 12] * 2}, "shape"),
    "a type that is none": ({"states": {"key.0": ["torch.int8", [2, 2, 8, 8]]}}, "`states`"),
    "digests of another number": ({"digests": []}, "`digests`"),
    "digests of numbers": ({"digests": [1, 2]}, "chunk 0"),
    "no model": ({"model": ...}, "'model' is missing"),
    "model of nothing": ({"model": None}, "`model` is None"),
    "a model of text": ({"model": "llama"}, "`model`"),
    "the format before": ({"format": 1}, "format is 1"),
    "a later format": ({"format": 99}, "format is 99"),
}  # fmt: skip


@pytest.mark.parametrize("forged", FORGED)
def test_what_is_forged_with_a_checksum_is_still_refused(
    forged: str, model: PeftModel, saved: dict[str, bytes], tmp_path: Path
) -> None:
    fields, named = FORGED[forged]
    with refusal("memory", str(tmp_path), "cannot be used", named, model=model):
        model.load_memory(edited(saved, tmp_path, **fields))


BYTES: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "JSON cut off": (JSON, lambda content: content[:100], ""),
    "JSON empty": (JSON, lambda content: b"", ""),
    "JSON of bytes": (JSON, lambda content: b"\xff\xfe\x00", ""),
    "JSON of a list": (JSON, lambda content: b"[]", "a list"),
    "JSON of nothing": (JSON, lambda content: b"null", "a NoneType"),
    "JSON of brackets": (JSON, lambda content: b"[" * 200_000, "nested too deeply"),
    "states empty": (STATES, lambda content: b"", ""),
    "states cut off": (STATES, lambda content: content[:2000], ""),
    "states cut off in the header": (STATES, lambda content: content[:20], ""),
    "states without their last byte": (STATES, lambda content: content[:-1], ""),
    "states of another kind": (STATES, lambda content: pickle.dumps({}), ""),
}
TENSORS: dict[str, Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]] = {
    "a layer is missing": lambda t: {k: v for k, v in t.items() if not k.endswith(".1")},
    "values are missing": lambda t: {k: v for k, v in t.items() if k != "value.1"},
    "a layer too many": lambda t: {**t, "key.2": t["key.0"].clone(), "value.2": t["key.0"].clone()},
    "chunks are missing": lambda t: {k: v[:1] for k, v in t.items()},
    "tokens are missing": lambda t: {k: v[:, :, :5] for k, v in t.items()},
    "heads are missing": lambda t: {k: v[:, :1] for k, v in t.items()},
    "dimensions are missing": lambda t: {k: v[..., :4] for k, v in t.items()},
    "another type": lambda t: {k: v.half() for k, v in t.items()},
    "another number of axes": lambda t: {k: v[:, 0] for k, v in t.items()},
}


@pytest.mark.parametrize("damage", [*BYTES, *TENSORS])
def test_damaged_files_are_refused(damage: str, model: PeftModel, saved: dict[str, bytes], tmp_path: Path) -> None:
    edited(saved, tmp_path)
    name, change, named = BYTES.get(damage, (STATES, lambda content: content, ""))
    (tmp_path / name).write_bytes(change(saved[name]))
    if damage in TENSORS:
        changed = TENSORS[damage](load_file(tmp_path / STATES))
        save_file({name: tensor.contiguous() for name, tensor in changed.items()}, tmp_path / STATES)
    with refusal("memory", str(tmp_path), "cannot be used", named, model=model):
        model.load_memory(tmp_path)


@pytest.mark.parametrize("storage", ["device", "cpu", "int8", "disk"])
def test_a_state_that_is_not_the_saved_one_is_refused_by_its_chunk(
    storage: str, model: PeftModel, saved: dict[str, bytes], tmp_path: Path
) -> None:
    edited(saved, tmp_path)
    states = load_file(tmp_path / STATES)
    for value in (float("nan"), 0.0):
        changed = {name: tensor.clone() for name, tensor in states.items()}
        changed["value.1"][1, 0, 2, 3] = value
        save_file(changed, tmp_path / STATES)
        with refusal("memory", "chunk 1", "not those that were saved", model=model):
            model.load_memory(tmp_path, storage=storage)
