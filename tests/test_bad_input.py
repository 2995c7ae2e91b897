"""What cannot work gets a clear error, in a sentence that names the argument, before any long work."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import VOCABULARY, each_rank, make_focus_model, make_tiny_model, random_ids
from peft import PeftModel
from refusal import assert_sentence, no_file_larger_than, refusal
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from focus_peft.frozen.compat import CACHE
from focus_peft.hub import save_adapter


SHORT, LONG = random_ids(4)[None], random_ids(30)[None]  # the local window has 8 tokens
each_length = pytest.mark.parametrize("ids", [SHORT, LONG], ids=["no memory", "memory"])

Call = Callable[..., Any]
CALLS: dict[str, Call] = {
    "generate": lambda model, ids, **options: model.generate(ids, max_new_tokens=2, **options),
    "forward": lambda model, ids, **options: model(ids, **options),
    "loss": lambda model, ids, **options: model(ids, labels=ids, **options),
    "encode": lambda model, ids, **options: model.encode(ids, **options),
}
each_call = pytest.mark.parametrize("call", CALLS)


def argument(call: str) -> str:
    return "`document_ids`" if call == "encode" else "`input_ids`"


# Ids, labels and masks: what is given, with which options, and what the refusal names; IDS is the argument's name


Case = tuple[Any, dict[str, Any], tuple[str, ...]]


def mask_with(ids: torch.Tensor, *hidden: int) -> torch.Tensor:
    mask = torch.ones_like(ids)
    mask[0, list(hidden)] = 0
    return mask


def masked(ids: torch.Tensor, mask: torch.Tensor, *named: str) -> Case:
    return ids, {"attention_mask": mask}, ("`attention_mask`", *named)


ANY_CALL: dict[str, Callable[[torch.Tensor], Case]] = {
    **{
        f"empty {shape}": lambda ids, shape=shape: (torch.zeros(shape, dtype=torch.long), {}, ("IDS", "empty"))
        for shape in ((1, 0), (0, 3), (0, 0))
    },
    **{
        f"token {token}": lambda ids, token=token: (
            ids.index_fill(1, torch.tensor(2), token),
            {},
            ("IDS", str(token), f"{VOCABULARY} tokens", "tokenizer"),
        )
        for token in (-1, VOCABULARY, 10**9)
    },
    **{
        str(dtype): lambda ids, dtype=dtype: (ids.to(dtype), {}, ("IDS", str(dtype), "integer"))
        for dtype in (torch.float32, torch.bool, torch.bfloat16)
    },
    "mask of a whole row": lambda ids: masked(
        ids.repeat(2, 1), torch.tensor([[1], [0]]).expand(2, ids.shape[1]), "Row 1", "every token"
    ),
    **{
        f"mask of shape {shape}": lambda ids, cut=cut: masked(
            ids, cut(torch.ones_like(ids)), str(tuple(cut(ids).shape)), str(tuple(ids.shape))
        )
        for shape, cut in {
            "(1, n-1)": lambda mask: mask[:, 1:],
            "(2, n)": lambda mask: mask.repeat(2, 1),
            "(n,)": lambda mask: mask[0],
        }.items()
    },
}


@each_length
@each_call
@pytest.mark.parametrize("case", ANY_CALL)
def test_what_no_call_can_read_is_refused(model: PeftModel, case: str, call: str, ids: torch.Tensor) -> None:
    given, options, named = ANY_CALL[case](ids)
    with refusal(*[argument(call) if name == "IDS" else name for name in named], model=model):
        CALLS[call](model, given, **options)


OUTSIDE = LONG.index_fill(1, torch.tensor(20), VOCABULARY)
LONGER, LONGER_SHORT = (torch.cat([ids, ids[:, :1]], dim=1) for ids in (LONG, SHORT))
BATCH = transformers.BatchEncoding({"input_ids": LONG, "attention_mask": torch.ones_like(LONG)})
NONE = torch.zeros(0, dtype=torch.long)
# by these calls; a memory of LONG stands for the option `memory`
SOME_CALLS: dict[str, tuple[str, Case]] = {
    **{
        f"document {number}, empty": ("encode", (documents, {}, ("IDS", "empty")))
        for number, documents in enumerate(([], [[]], [[1, 2], []], NONE, [NONE]))
    },
    **{
        f"documents {documents}": ("encode", (documents, {}, ("IDS",)))
        for documents in ([[1.5, 2.0]], [[True, False]], ["text"], "text", [["text"]], [["a", "b"]], None, 5)
    },
    "documents of three axes": ("encode", (LONG[None], {}, ("IDS", "(1, 1, 30)"))),
    "documents of two axes in a list": ("encode", ([LONG], {}, ("IDS",))),
    "an empty question": ("generate forward encode", (NONE[None], {"memory": True}, ("IDS", "empty"))),
    "a question outside": ("generate forward encode", (OUTSIDE, {"memory": True}, ("IDS", str(VOCABULARY)))),
    "a tokenizer's output": ("generate encode", (BATCH, {}, ("IDS", "BatchEncoding", "input_ids"))),
    "one axis": ("generate forward loss", (LONG[0], {}, ("IDS", "(rows, tokens)", "(30,)"))),
    "three axes": ("generate forward loss", (LONG[None], {}, ("IDS", "(rows, tokens)", "(1, 1, 30)"))),
    "labels outside": ("forward", (LONG, {"labels": OUTSIDE}, ("`labels`", str(VOCABULARY)))),
    "labels below 0": ("forward", (LONG, {"labels": torch.full_like(LONG, -5)}, ("`labels`", "-5"))),
    "labels of another shape": ("forward", (LONG, {"labels": SHORT}, ("`labels`", "(1, 4)", "IDS", "(1, 30)"))),
    "labels of another type": ("forward", (LONG, {"labels": LONG.float()}, ("`labels`", "torch.float32"))),
    "labels beside a memory": ("forward", (LONG, {"labels": LONG, "memory": True}, ("`labels`", "`memory`"))),
    # a short one is the base model's to read (test_as_on_the_hub), but not to train on, or to encode
    **{
        f"mask with a hole at {hidden}{short}": (calls, masked(ids, mask_with(ids, *hidden), "Row 0", "hole", *named))
        for hidden in ((1,), (0, 2), (1, 3))
        for ids, short, calls, named in (
            (LONGER, "", "generate forward loss", ["IDS"]),
            (LONGER_SHORT, ", short", "loss", ["IDS"]),
            (LONGER, "", "encode", []),
            (LONGER_SHORT, ", short", "encode", []),
        )
    },
    "a mask that is a list": (
        "generate forward loss encode",
        (LONG, {"attention_mask": torch.ones_like(LONG).tolist()}, ("`attention_mask`", "list")),
    ),
    "a mask beside a list of documents": (
        "encode",
        masked([LONG[0], SHORT[0]], torch.ones(2, 30), "IDS", "list"),
    ),
}


@pytest.mark.parametrize(
    ("call", "case"), [(call, name) for name, (calls, _) in SOME_CALLS.items() for call in calls.split()]
)
def test_what_a_call_cannot_read_is_refused(model: PeftModel, call: str, case: str) -> None:
    given, options, named = SOME_CALLS[case][1]
    if "memory" in options:
        options = {**options, "memory": model.encode(LONG)}
    with refusal(*[argument(call) if name == "IDS" else name for name in named], model=model):
        CALLS[call](model, given, **options)


def test_no_input_at_all_is_refused(model: PeftModel) -> None:
    with refusal("`input_ids`", model=model):
        model.generate(max_new_tokens=2)
    with pytest.raises(ValueError, match="input_ids"):
        model()


# Other arguments


@pytest.mark.parametrize("wrong", ["a/directory", [1, 2], {"memory": 1}], ids=str)
def test_a_memory_that_is_none_is_refused(model: PeftModel, wrong: Any) -> None:
    for call in ("generate", "forward", "encode"):
        with refusal("`memory`", type(wrong).__name__, "encode", model=model, error=(ValueError, TypeError)):
            CALLS[call](model, LONG, memory=wrong)


@pytest.mark.parametrize("call", ["generate", "forward"])
def test_questions_must_share_out_among_the_documents(model: PeftModel, call: str) -> None:
    memory = model.encode([LONG[0], SHORT[0]])
    with refusal("`input_ids`", "3 rows", "2 documents", "`memory`", model=model):
        CALLS[call](model, SHORT.repeat(3, 1), memory=memory)


@pytest.mark.parametrize(
    "options",
    [
        {"output_hidden_states": True},
        {"output_attentions": True},
        {"position_ids": 1 + torch.arange(30)[None]},
        {"no_such_option": 1},
    ],
    ids=lambda options: next(iter(options)),
)
def test_forward_does_not_drop_what_it_cannot_do(model: PeftModel, options: dict[str, Any]) -> None:
    with refusal(f"`{next(iter(options))}`", model=model, error=(ValueError, TypeError)):
        model(LONG, **options)


def test_a_negative_number_of_logits_is_refused_and_too_many_are_all(model: PeftModel) -> None:
    with refusal("`logits_to_keep`", "-3", model=model):
        model(LONG, logits_to_keep=-3)
    assert torch.equal(model(LONG, logits_to_keep=31).logits, model(LONG).logits)


# Adapter files


def adapter(directory: Path, family: str = "llama", base: dict[str, Any] | None = None, **fields: Any) -> Path:
    """A saved adapter."""
    make_focus_model(family, torch.float32, base=base, **fields).save_pretrained(directory)
    return directory


def load(directory: Path, family: str = "llama", **base: Any) -> PeftModel:
    return PeftModel.from_pretrained(make_tiny_model(family, torch.float32, **base), directory)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@each_rank
def test_weights_that_are_not_finite_are_refused_by_name(r: int | None, value: float, tmp_path: Path) -> None:
    file = adapter(tmp_path, r=r) / "adapter_model.safetensors"
    weights = load_file(file)
    name = sorted(weights)[3]
    weights[name].view(-1)[7] = value
    save_file(weights, file)
    path, _, matrix = name.partition(".focus_")
    with refusal("adapter", f"{path}.focus_{matrix.partition('.')[0]}", "NaN" if value != value else "infinite"):
        load(tmp_path)
    model = make_focus_model(dtype=torch.float32)
    before = model(LONG).logits
    with refusal("adapter", path):
        model.load_adapter(tmp_path, adapter_name="second")
    assert torch.equal(model(LONG).logits, before)


@pytest.mark.parametrize("keep", [0, 5, 200, 0.5, -1], ids=["nothing", "5 bytes", "header", "half", "all but a byte"])
def test_a_truncated_file_is_refused_before_the_model_is_wrapped(keep: float, tmp_path: Path) -> None:
    path = adapter(tmp_path) / "adapter_model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    base = make_tiny_model(dtype=torch.float32)
    with refusal(str(tmp_path), "adapter_model.safetensors", "damaged"):
        PeftModel.from_pretrained(base, tmp_path)
    assert not hasattr(base, "peft_config")
    model = make_focus_model(dtype=torch.float32)
    with refusal(str(tmp_path), "adapter_model.safetensors", "damaged"):
        model.load_adapter(tmp_path, adapter_name="second")
    assert list(model.peft_config) == ["default"]


@pytest.mark.parametrize(
    "family, fields",
    [
        ("gpt2", {}),
        ("gpt_neox", {}),
        ("opt", {}),
        ("phi3", {}),
        ("qwen2", {}),  # the same names, but with biases
        ("llama", {"num_hidden_layers": 3}),
        ("llama", {"num_hidden_layers": 1}),
    ],
    ids=["gpt2", "gpt_neox", "opt", "phi3", "biases", "more layers", "fewer layers"],
)
def test_an_adapter_of_another_architecture_is_refused(family: str, fields: dict[str, Any], tmp_path: Path) -> None:
    adapter(tmp_path)
    with refusal("adapter", "another architecture"):
        load(tmp_path, family, **fields)


@each_rank
@pytest.mark.parametrize(
    "fields",
    [{"hidden_size": 64}, {"num_key_value_heads": 4}, {"head_dim": 16}],
    ids=lambda fields: next(iter(fields)),
)
def test_an_adapter_of_other_shapes_is_refused_with_both_shapes(
    r: int | None, fields: dict[str, int], tmp_path: Path
) -> None:
    adapter(tmp_path, r=r)
    with refusal("adapter", "shape", "_proj") as caught:
        load(tmp_path, **fields)
    assert len(set(re.findall(r"\(\d+, \d+\)", str(caught.value)))) == 2


def test_an_adapter_of_another_rank_cannot_replace_a_loaded_one(tmp_path: Path) -> None:
    adapter(tmp_path, r=4)
    for model in (make_focus_model(dtype=torch.float32, r=2), make_focus_model(dtype=torch.float32)):
        before = {name: parameter.clone() for name, parameter in model.named_parameters()}
        with refusal("adapter"):
            model.load_adapter(tmp_path, adapter_name="default")
        assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_a_file_with_missing_or_unknown_weights_is_refused_by_name(change: str, tmp_path: Path) -> None:
    path = adapter(tmp_path) / "adapter_model.safetensors"
    weights = load_file(path)
    name = sorted(weights)[0]
    tensor = weights.pop(name)
    if change == "unknown":
        weights = {**weights, name: tensor, name.replace("layers.0", "layers.7"): tensor.clone()}
        name = name.replace("layers.0", "layers.7")
    save_file(weights, path)
    with refusal("adapter", name.removeprefix("base_model.model.").partition(".focus_")[0]):
        load(tmp_path)


def test_an_adapter_whose_sizes_do_not_fit_the_model_is_refused(tmp_path: Path) -> None:
    adapter(tmp_path, base={"max_position_embeddings": 512}, chunk_size=200, local_size=100, prompt_size=50)
    with refusal("`chunk_size` (200)", "128 positions"):
        load(tmp_path)


# A full disk (for memories see test_memory too)


# The first file that is too large: the card of 5 kB, the weights of 25 kB, a configuration with a long expression of 9
# kB
TOO_LARGE: dict[str, tuple[int, dict[str, Any]]] = {
    "card": (100, {}),
    "weights": (8_000, {}),
    "configuration": (
        7_000,
        {"r": 1, "target_modules": ".*(q_proj|" + "|".join(f"none{n}" for n in range(1000)) + ")"},
    ),
}


@pytest.mark.parametrize("safe_serialization", [True, False], ids=["safetensors", "pickle"])
@pytest.mark.parametrize("file", TOO_LARGE)
def test_an_adapter_that_cannot_be_written_leaves_nothing_half_written(
    file: str, safe_serialization: bool, tmp_path: Path
) -> None:
    size, fields = TOO_LARGE[file]
    model = make_focus_model(dtype=torch.float32, **fields)
    with refusal(str(tmp_path / "new"), "could not be", error=OSError), no_file_larger_than(size):
        save_adapter(model, tmp_path / "new", safe_serialization=safe_serialization)
    assert list(tmp_path.rglob("*")) == []
    save_adapter(model, tmp_path / "new", safe_serialization=safe_serialization)
    assert torch.isfinite(load(tmp_path / "new")(LONG).logits).all()


@pytest.mark.parametrize("file", TOO_LARGE)
def test_an_adapter_that_was_there_before_survives_a_full_disk(file: str, tmp_path: Path) -> None:
    size, fields = TOO_LARGE[file]
    adapter(tmp_path / "kept", **fields)
    (tmp_path / "kept" / "mine.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in (tmp_path / "kept").iterdir()}
    other = make_focus_model(dtype=torch.float32, base={"seed": 3}, **fields)
    with refusal(str(tmp_path / "kept"), error=OSError), no_file_larger_than(size):
        save_adapter(other, tmp_path / "kept")
    assert {path.name: path.read_bytes() for path in (tmp_path / "kept").iterdir()} == before
    save_adapter(other, tmp_path / "kept")
    assert (tmp_path / "kept" / "mine.txt").read_text() == "mine"
    assert (tmp_path / "kept" / "adapter_model.safetensors").read_bytes() != before["adapter_model.safetensors"]


@pytest.mark.parametrize("file", TOO_LARGE)
def test_what_pefts_own_saving_leaves_on_a_full_disk_is_the_old_adapter_or_refused(file: str, tmp_path: Path) -> None:
    size, fields = TOO_LARGE[file]
    adapter(tmp_path, **fields)
    expected = load(tmp_path)(LONG).logits
    same_weights = make_focus_model(dtype=torch.float32, **fields)
    other = make_focus_model(dtype=torch.float32, base={"seed": 3}, **fields)
    with pytest.raises((OSError, SafetensorError)), no_file_larger_than(size):
        (same_weights if file == "configuration" else other).save_pretrained(tmp_path)
    try:
        loaded = load(tmp_path)
    except ValueError as error:  # safetensors before 0.8 or so writes in place
        assert_sentence(str(error), "adapter_model.safetensors", "damaged", "save it again")
    else:
        assert torch.equal(loaded(LONG).logits, expected)


# Runs as root of its own namespace, in which a small file system may be mounted without anybody's leave
FILL_THE_DISK = """
import json, os, subprocess, sys
sys.path.insert(0, sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", sys.argv[2]], check=True)
os.chdir(sys.argv[2])
from conftest import make_focus_model, random_ids
from focus_peft.hub import save_adapter

def files():
    found = (os.path.join(folder, name) for folder, _, names in os.walk(".") for name in names)
    return sorted(map(os.path.normpath, found))

model = make_focus_model(target_modules=["q_proj"])
memory = model.encode(random_ids(60))
outcomes = {"memory": [], "adapter": []}
for taken in range(0, 65, 6):
    with open("other", "wb") as file:
        file.write(bytes(1024 * taken))
    for kind, save in (("memory", memory.save), ("adapter", lambda folder: save_adapter(model, folder))):
        try:
            save(kind)
            outcome = "saved"
        except Exception as error:
            outcome = type(error).__name__ + ": " + str(error)
        outcomes[kind].append([outcome, [name for name in files() if name != "other"]])
        subprocess.run(["rm", "-rf", kind], check=True)

# into the mounted folder itself, from which nothing can be moved elsewhere
os.remove("other")
memory.save(sys.argv[2])
outcomes["memory into the mount"] = files()
for name in files():
    os.remove(name)
save_adapter(model, sys.argv[2])
save_adapter(model, sys.argv[2])
outcomes["adapter into the mount"] = files()
print(json.dumps(outcomes))
"""


def may_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    attempt = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(attempt, capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def full_disk(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    """What came of saving a memory and an adapter to a small disk, with less and less room on it."""
    if not may_mount():
        pytest.skip("needs the right to mount a small file system")
    command = ["unshare", "-rm", sys.executable, "-W", "ignore", "-c", FILL_THE_DISK]
    command += [str(Path(__file__).parent), str(tmp_path_factory.mktemp("disk"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


FILES = {
    "memory": ["memory.json", "memory.safetensors"],
    "adapter": ["README.md", "adapter_config.json", "adapter_model.safetensors"],
}


@pytest.mark.parametrize("kind", FILES)
def test_wherever_a_disk_fills_up_nothing_half_written_is_left(full_disk: dict[str, list], kind: str) -> None:
    saved = [left for outcome, left in full_disk[kind] if outcome == "saved"]
    failed = [(outcome, left) for outcome, left in full_disk[kind] if outcome != "saved"]
    assert saved and failed
    assert all(left == [f"{kind}/{name}" for name in FILES[kind]] for left in saved)
    for outcome, left in failed:
        assert left == []
        assert_sentence(outcome, "OSError", "directory`", "No space left")


@pytest.mark.parametrize("kind", FILES)
def test_a_folder_where_a_disk_is_mounted_can_be_saved_to(full_disk: dict[str, list], kind: str) -> None:
    assert full_disk[f"{kind} into the mount"] == FILES[kind]


def test_generating_without_the_cache_that_holds_the_memory_is_an_error() -> None:
    """A model may drop the cache while it prepares its inputs; then it would read the whole input by itself."""
    model = make_focus_model()
    base = model.get_base_model()
    prepare = base.prepare_inputs_for_generation

    def dropping(*args: Any, **kwargs: Any) -> dict[str, Any]:
        return {**prepare(*args, **kwargs), CACHE: None}

    base.prepare_inputs_for_generation = dropping
    with pytest.raises(RuntimeError, match="without the cache that holds the memory"):
        model.generate(random_ids(30)[None], max_new_tokens=2)
