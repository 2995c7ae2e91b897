"""
What must hold on any device: plain functions of a device, so that a card without pytest can be checked too.

`test_gpu.py` runs them on the CPU, in every run of the tests, and on a card where there is one; `recipes/gpu.py` runs
them by itself. What is expected was computed on the CPU, mostly by the slow reference in float64.
"""

from __future__ import annotations

import copy
import tempfile
import threading
import unittest
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from accelerate import infer_auto_device_map
from peft import PeftModel, get_peft_model
from reference import Reference, SlowSequence, make_oracle
from tiny import make_focus_model, make_tiny_model, pad_rows, perturb_twins, random_ids
from torch.utils._python_dispatch import TorchDispatchMode
from training import assert_same_gradients, gradients
from transformers import AutoModelForCausalLM
from transformers.utils import is_flash_attn_2_available

from focus_peft import Memory


FAMILIES = ("llama", "mistral", "qwen3", "gemma3", "gpt2", "bloom", "deepseek_v3", "phi3")
# Relative, by norm. The products of TensorFloat-32 would miss it by ten times
FLOAT32 = 1e-4
# Rounding in another order may miss the true logits by so many times what the slow reference misses them by in the
# same type
ROUNDING = 3.0
LENGTHS = (29, 22)  # of a batch's rows; while twelve tokens are generated, both windows spill
NEW_TOKENS = 12

Check = Callable[[torch.device], None]


def references(family: str, dtype: torch.dtype, **fields: Any) -> tuple[PeftModel, Reference, Reference]:
    """A wrapped model, the reference with the same weights in float64, and the reference in the model's own type."""
    model, wide = make_focus_model(family, dtype, **fields), make_focus_model(family, **fields)
    wide.load_state_dict(model.state_dict())
    base = make_tiny_model(family)
    base.load_state_dict(make_tiny_model(family, dtype).state_dict())
    narrow = copy.deepcopy(model).to(dtype)  # PEFT leaves twins in float32
    return model, Reference(base, wide), Reference(make_tiny_model(family, dtype), narrow)


def logits_of(sequence: SlowSequence, tokens: torch.Tensor) -> torch.Tensor:
    """The logits (tokens, vocabulary) that given tokens were, or would have been, taken from."""
    rows = [sequence.logits]
    for token in tokens[:-1].tolist():
        rows.append(sequence.append(token))
    return torch.stack(rows)


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The distance of two tensors, relative to the second."""
    wanted = wanted.detach().double().cpu()
    return float((found.detach().double().cpu() - wanted).norm() / wanted.norm())


def at_most(value: float, bound: float, what: str) -> None:
    assert value <= bound, f"the {what} is {value:.3g}, more than {bound:.3g}"


def prompts() -> list[torch.Tensor]:
    return [random_ids(length, seed=length) for length in LENGTHS]


def generate(model: PeftModel, rows: list[torch.Tensor], device: torch.device, **options: Any) -> tuple[Any, Any]:
    """Greedy tokens (rows, new) and their logits (rows, new, vocabulary), on the CPU."""
    ids, mask = (side.to(device) for side in pad_rows(rows))
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, **options}
    output = model.generate(
        input_ids=ids, attention_mask=mask, output_logits=True, return_dict_in_generate=True, **options
    )
    return output.sequences[:, ids.shape[1] :].cpu(), torch.stack(output.logits, 1).cpu()


def follows(
    reference: Reference, rows: list[torch.Tensor], tokens: torch.Tensor, memory: torch.Tensor | None = None
) -> torch.Tensor:
    """The reference's logits (rows, new, vocabulary) along given tokens."""
    before = None if memory is None else memory.tolist()
    return torch.stack([logits_of(reference.start(row, before), new) for row, new in zip(rows, tokens)])


def equals_the_reference(
    device: torch.device,
    family: str = "llama",
    decoding: str = "streaming",
    dtype: torch.dtype = torch.float32,
    attention: str | None = None,
) -> None:
    """Greedy decoding of a padded batch has the logits of the slow reference along the same tokens."""
    if attention == "flash_attention_2" and not (device.type == "cuda" and is_flash_attn_2_available()):
        raise unittest.SkipTest("flash-attention 2 is not installed, or there is no card")
    model, exact, rounded = references(family, dtype, decoding=decoding)
    if attention is not None:
        model.get_base_model().set_attn_implementation(attention)
    tokens, logits = generate(model.to(device), prompts(), device)
    wanted = follows(exact, prompts(), tokens)
    bound = FLOAT32
    if dtype != torch.float32:
        bound = ROUNDING * error(follows(rounded, prompts(), tokens), wanted)
    else:
        assert tokens.tolist() == wanted.argmax(-1).tolist(), "greedy tokens are others"
    at_most(error(logits, wanted), bound, f"error of {family}'s logits in {dtype}")


def storage_equals_the_reference(device: torch.device, storage: str) -> None:
    """A memory in each storage, read a chunk at a time so that pieces are copied ahead, gives the reference's
    logits.
    """
    model, exact, _ = references("llama", torch.float32)
    document, questions = random_ids(40, seed=3), [random_ids(10, seed=4), random_ids(10, seed=5)]
    options: dict[str, Any] = {"storage": storage, "chunk_batch_size": 1}
    bound = FLOAT32
    if storage == "int8":
        tokens, logits = generate(model, questions, torch.device("cpu"), memory=model.encode(document, **options))
        bound = ROUNDING * error(logits, follows(exact, questions, tokens, document))
    model.to(device)
    memory = model.encode(document.to(device), **options)
    tokens, logits = generate(model, questions, device, memory=memory, chunk_batch_size=1)
    at_most(error(logits, follows(exact, questions, tokens, document)), bound, f"error with storage {storage!r}")
    assert memory.storage == storage
    if device.type == "cuda" and storage == "cpu":
        assert all(side.is_pinned() for layer in memory.store.layers for side in layer), (
            "states are not in pinned memory"
        )
        assert memory.store._streams, "no piece was copied beside computation"  # type: ignore[attr-defined]


def offloaded_layers_equal_the_reference(device: torch.device) -> None:
    """A base model that a device map spreads over the card and CPU memory (on the CPU: and the disk), wrapped, decodes
    the same.
    """
    fast, slow = (0, "cpu") if device.type == "cuda" else ("cpu", "disk")
    model, exact, _ = references("llama", torch.float32)
    plain = make_tiny_model("llama", torch.float32)
    most = 0.75 * sum(parameter.nbytes for parameter in plain.parameters())
    with tempfile.TemporaryDirectory() as folder:
        plain.save_pretrained(folder)
        places = infer_auto_device_map(
            plain, {0: int(most), "cpu": 2**30}, no_split_module_classes=list(plain._no_split_modules or [])
        )
        assert set(places.values()) == {0, "cpu"}, f"the map {places} is of one device"
        device_map = {name: fast if place == 0 else slow for name, place in places.items()}
        base = AutoModelForCausalLM.from_pretrained(folder, device_map=device_map, offload_folder=f"{folder}/disk")
        base.generation_config.eos_token_id = None
        spread = get_peft_model(base, model.peft_config["default"]).eval()
        perturb_twins(spread)
        tokens, logits = generate(spread, prompts(), device)
    at_most(error(logits, follows(exact, prompts(), tokens)), FLOAT32, "error with offloaded layers")


def takes_ids_from_the_cpu(device: torch.device) -> None:
    """Ids and memories that were made on the CPU are read as those on the model's device."""
    model = make_focus_model("llama", torch.float32).to(device)
    ids, document = random_ids(29, seed=1)[None], random_ids(40, seed=2)
    there = model.generate(input_ids=ids.to(device), max_new_tokens=NEW_TOKENS, do_sample=False)
    here = model.generate(input_ids=ids, max_new_tokens=NEW_TOKENS, do_sample=False)
    assert here.tolist() == there.tolist()
    assert here.device.type == "cpu" and there.device.type == device.type
    memories = [model.encode(document.to(place)) for place in ("cpu", device)]
    answers = [model(ids[:, :8].to(place), memory=memory).logits for place, memory in zip(("cpu", device), memories)]
    at_most(error(*answers), FLOAT32, "difference")


def works_in_inference_mode(device: torch.device) -> None:
    """In `torch.inference_mode`, tokens are the same, and training works after it."""
    model = make_focus_model("llama", torch.float32).to(device)
    tokens, _ = generate(model, prompts(), device)
    with torch.inference_mode():
        within, _ = generate(model, prompts(), device)
    assert within.tolist() == tokens.tolist()
    loss_of(model, device).backward()


def two_threads_ask_one_memory(device: torch.device) -> None:
    """Two threads that ask one memory in turn, neither of which made the model, get what one thread gets."""
    model = make_focus_model("llama", torch.float32).to(device)
    memory = model.encode(random_ids(40, seed=2).to(device))
    questions = [random_ids(9, seed=seed) for seed in (5, 6)]
    wanted = [generate(model, [question], device, memory=memory)[0].tolist() for question in questions]
    found: dict[int, list[Any]] = {0: [], 1: []}
    turn = threading.Condition()

    def ask(number: int) -> None:
        for _ in range(3):
            with turn:
                turn.wait_for(lambda: len(found[number]) <= len(found[1 - number]) - number, timeout=60)
                found[number].append(generate(model, [questions[number]], device, memory=memory)[0].tolist())
                turn.notify_all()

    threads = [threading.Thread(target=ask, args=(number,)) for number in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [tokens] * 3 for number, tokens in enumerate(wanted)}


def beams_equal_the_reference(device: torch.device) -> None:
    """Beam search equals transformers' own over the reference's logits."""
    model, exact, _ = references("llama", torch.float32)
    ids, mask = pad_rows(prompts())
    options: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "num_beams": 3, "num_return_sequences": 2}
    options |= {"do_sample": False, "return_dict_in_generate": True, "output_scores": True}
    wanted = make_oracle(exact, ids.shape[1]).generate(input_ids=ids, attention_mask=mask, use_cache=False, **options)
    found = model.to(device).generate(input_ids=ids.to(device), attention_mask=mask.to(device), **options)
    assert found.sequences.tolist() == wanted.sequences.tolist()
    at_most(error(found.sequences_scores, wanted.sequences_scores), FLOAT32, "error of the scores")


def saved_memory_equals_the_reference(device: torch.device) -> None:
    """A memory that the device encoded, saved, and loaded there and on the CPU, answers like the reference."""
    model, exact, _ = references("llama", torch.float32)
    document, question = random_ids(40, seed=3), [random_ids(10, seed=4)]
    model.to(device)
    with tempfile.TemporaryDirectory() as folder:
        model.encode(document.to(device)).save(folder)
        for place in (device, torch.device("cpu")):
            memory: Memory = model.to(place).load_memory(folder)
            tokens, logits = generate(model, question, place, memory=memory)
            at_most(error(logits, follows(exact, question, tokens, document)), FLOAT32, f"error on {place}")


def loss_of(model: PeftModel, device: torch.device, seed: int = 7) -> torch.Tensor:
    """Both losses of two documents, on spans that a seed draws."""
    ids = torch.stack([random_ids(44, seed=1), random_ids(44, seed=2)]).to(device)
    output = model(ids, labels=ids, sample_seeds=torch.tensor([seed, seed + 1]).to(device))
    assert int(output.num_continuation) > 0 and int(output.num_repetition) > 0
    return output.loss


def trainable(dtype: torch.dtype, decoding: str, r: int | None, distill_weight: float = 0.0) -> PeftModel:
    return make_focus_model(
        dtype=dtype, decoding=decoding, r=r, label_size=3, train_min_chunk_size=4, distill_weight=distill_weight
    ).train()


def trains_like_the_cpu(device: torch.device, decoding: str, r: int | None) -> None:
    """Both losses and their gradients, and the twins after a step, are those of float64 on the CPU; with and without
    checkpoints.
    """
    wide, model, checkpointed = (
        trainable(dtype, decoding, r, 0.3) for dtype in (torch.float64, torch.float32, torch.float32)
    )
    wanted = loss_of(wide, torch.device("cpu"))
    wanted.backward()
    base: Any = checkpointed.get_base_model()
    if hasattr(base, "activation_checkpointing_enable"):
        base.activation_checkpointing_enable()
    else:  # its name before transformers 5.20 or so
        base.gradient_checkpointing_enable()
    for one in (model, checkpointed):
        one.load_state_dict(wide.state_dict())  # low-rank twins start at random
        one.to(device)
        found = loss_of(one, device)
        found.backward()
        at_most(error(found, wanted), FLOAT32, "error of the loss")
        on_cpu = {name: None if grad is None else grad.double().cpu() for name, grad in gradients(one).items()}
        assert_same_gradients(on_cpu, gradients(wide), tolerance=10 * FLOAT32)
    before = [parameter.detach().clone() for parameter in model.parameters() if parameter.requires_grad]
    # of SGD, which moves by the gradient itself; AdamW would hide its size
    for one in (wide, model):
        torch.optim.SGD([p for p in one.parameters() if p.requires_grad], lr=0.1).step()
    after = [(a, b) for a, b in zip(model.parameters(), wide.parameters()) if a.requires_grad]
    for new, other in after:
        at_most(error(new, other), FLOAT32, "error of the twins after a step")
    assert any(not torch.equal(old, new) for old, (new, _) in zip(before, after)), "a step changed nothing"


def trains_in_autocast(device: torch.device) -> None:
    """In autocast to bfloat16, loss and gradients are those of float32 but for rounding."""
    model = trainable(torch.float32, "streaming", 4).to(device)
    wanted = loss_of(model, device)
    wanted.backward()
    exact = {name: grad for name, grad in gradients(model).items() if grad is not None}
    model.zero_grad(set_to_none=True)
    with torch.autocast(device.type, torch.bfloat16):
        found = loss_of(model, device)
    found.backward()
    at_most(error(found, wanted), 0.05, "error of the loss")
    rounded = gradients(model)
    flat = [torch.cat([grads[name].flatten() for name in exact]) for grads in (rounded, exact)]
    assert torch.isfinite(flat[0]).all()
    at_most(error(*flat), 0.2, "error of the gradients")
    at_most(1e-6, error(*flat), "least error that bfloat16 leaves")  # or nothing was cast


class NoWaiting(TorchDispatchMode):
    """Within the context, operations that wait for a device to be done raise an error. For devices that cannot tell by
    themselves.
    """

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in self.WAITING:
            raise RuntimeError(f"{func} makes the CPU wait for the device")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    if device.type != "cuda":
        with NoWaiting():
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def layers_never_wait(device: torch.device, storage: str = "device") -> None:
    """From the first layer of a pass to its last, nothing makes the CPU wait for the device: while reading, decoding
    and training.
    """
    model = make_focus_model("llama", torch.float32, label_size=3, train_min_chunk_size=4).to(device)
    layers = model.get_base_model().model.layers
    entered: list[Any] = []
    passes = [0]

    def enter(*_: Any) -> None:
        entered.append(no_waiting(device))
        entered[-1].__enter__()
        passes[0] += 1

    def leave(*_: Any) -> None:
        entered.pop().__exit__(None, None, None)

    hooks = [layers[0].register_forward_pre_hook(enter), layers[-1].register_forward_hook(leave)]
    try:
        for decoding in ("streaming", "exact"):
            generate(model, prompts(), device, decoding=decoding, storage=storage, chunk_batch_size=1)
        if storage == "device":
            loss_of(model.train(), device).backward()
    finally:
        while entered:
            leave()
        for hook in hooks:
            hook.remove()
    assert passes[0] > 2 * NEW_TOKENS


def _checks() -> dict[str, Check]:
    """Every check by its name."""
    checks: dict[str, Check] = {}
    for family in FAMILIES:
        for decoding in ("streaming", "exact"):
            for dtype in (torch.float32, torch.bfloat16):
                name = f"decoding equals the reference: {family}, {decoding}, {str(dtype).removeprefix('torch.')}"
                checks[name] = partial(equals_the_reference, family=family, decoding=decoding, dtype=dtype)
    for attention, dtype in (
        ("eager", torch.float32),
        ("sdpa", torch.float32),
        ("sdpa", torch.bfloat16),
        ("flash_attention_2", torch.bfloat16),
    ):
        name = f"decoding equals the reference: llama, {attention}, {str(dtype).removeprefix('torch.')}"
        checks[name] = partial(equals_the_reference, dtype=dtype, attention=attention)
    for storage in ("device", "cpu", "int8", "disk"):
        checks[f"storage {storage}"] = partial(storage_equals_the_reference, storage=storage)
    for decoding in ("streaming", "exact"):
        for r in (None, 4):
            twins = "full twins" if r is None else f"r={r}"
            checks[f"training equals the CPU's: {decoding}, {twins}"] = partial(
                trains_like_the_cpu, decoding=decoding, r=r
            )
    for storage in ("device", "cpu"):
        checks[f"no waiting within the layers: storage {storage}"] = partial(layers_never_wait, storage=storage)
    return checks | {
        "layers offloaded by a device map": offloaded_layers_equal_the_reference,
        "ids on the CPU and on the device": takes_ids_from_the_cpu,
        "inference mode": works_in_inference_mode,
        "two threads in turn, one memory": two_threads_ask_one_memory,
        "beams": beams_equal_the_reference,
        "a memory saved and loaded": saved_memory_equals_the_reference,
        "training in bfloat16 autocast": trains_in_autocast,
    }


CHECKS = _checks()
# What `recipes/gpu.py --small` runs: one of each kind
FEW = (
    "decoding equals the reference: llama, streaming, float32",
    "decoding equals the reference: mistral, exact, bfloat16",
    "storage int8",
    "training equals the CPU's: streaming, r=4",
    "no waiting within the layers: storage device",
    "beams",
)
