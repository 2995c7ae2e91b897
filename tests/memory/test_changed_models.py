"""The base model changes after it was wrapped or has read something: facts that were taken before hold no longer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import VOCABULARY, make_focus_model, make_tiny_model, perturb_twins, random_ids, small_config
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from refusal import refusal, refused_everywhere

from focus_peft import Memory
from focus_peft.frozen.compat import CACHE


DOCUMENT = random_ids(30, seed=1)
QUESTION = random_ids(6, seed=2)[None]
LONG = random_ids(40, seed=3)[None]


def answer(model: PeftModel, memory: Memory) -> torch.Tensor:
    with torch.no_grad():
        return model(QUESTION, memory=memory).logits


def frozen(model: PeftModel) -> list[torch.nn.Parameter]:
    return [p for name, p in model.get_base_model().named_parameters() if "focus_" not in name]


# Weights


def in_place(model: PeftModel) -> None:
    with torch.no_grad():
        frozen(model)[5].mul_(1.1)


def past_the_version(model: PeftModel) -> None:
    for weight in frozen(model):
        weight.data.mul_(1.1)


def exchanged(model: PeftModel) -> None:
    weight = frozen(model)[5]
    weight.data = weight.data * 1.1


def optimized(model: PeftModel) -> None:
    weight = frozen(model)[5].requires_grad_(True)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    weight.grad = torch.ones_like(weight)
    optimizer.step()


def loaded(model: PeftModel) -> None:
    other = make_focus_model(base={"seed": 9})
    model.load_state_dict(other.state_dict())


@pytest.mark.parametrize("change", [in_place, past_the_version, exchanged, optimized, loaded])
def test_a_memory_of_the_weights_before_is_refused(change: Callable[[PeftModel], None]) -> None:
    model = make_focus_model()
    memory = model.encode(DOCUMENT)
    before = answer(model, memory)
    change(model)
    refused_everywhere(model, memory, "`memory`", "another model", "encode")
    assert not torch.equal(answer(model, model.encode(DOCUMENT)), before)


def test_what_is_saved_after_a_change_is_loaded_by_the_same_model(tmp_path: Path) -> None:
    model = make_focus_model(dtype=torch.float32)
    model.encode(DOCUMENT)
    model.bfloat16()
    memory = model.encode(DOCUMENT)
    memory.save(tmp_path / "memory")
    same = make_focus_model(dtype=torch.float32).bfloat16()
    assert torch.equal(answer(same, same.load_memory(tmp_path / "memory")), answer(model, memory))


def test_a_model_that_was_cast_refuses_the_memory_of_the_other_type() -> None:
    model = make_focus_model(dtype=torch.float32)
    memory = model.encode(DOCUMENT)
    with refusal("`memory`", "torch.float32", "torch.bfloat16", "encode", model=model.bfloat16()):
        model.generate(QUESTION, memory=memory)


def test_training_twins_and_switching_modes_change_nothing_that_is_frozen() -> None:
    model = make_focus_model()
    memory, fingerprint = model.encode(DOCUMENT), model.base_model.fingerprint
    perturb_twins(model, seed=8)
    model.train().eval()
    model.add_adapter("second", small_config())
    model.set_adapter("second")
    assert model.base_model.fingerprint is fingerprint, "not even looked at again"
    assert torch.isfinite(answer(model, memory)).all()


# Another adapter in the base


def over_lora() -> tuple[PeftModel, PeftModel]:
    """A model with a LoRA that changes what it computes, and the focus model over it."""
    lora = get_peft_model(make_tiny_model(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    lora.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in lora.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator))
    model = get_peft_model(lora.base_model.model, small_config(r=2)).eval()
    perturb_twins(model)
    return lora, model


SWITCHES: dict[str, Callable[[PeftModel], Any]] = {
    "another": lambda lora: lora.base_model.set_adapter("other"),
    "merged": lambda lora: [m.merge() for m in lora.modules() if isinstance(m, LoraLayer)],
    "scaled": lambda lora: [m.scale_layer(3.0) for m in lora.modules() if isinstance(m, LoraLayer)],
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_memory_is_of_the_adapters_that_were_on(switch: str) -> None:
    lora, model = over_lora()
    memory = model.encode(DOCUMENT)
    with model.keeping_chunks() as pool:
        model(LONG)
        misses = pool.misses
        SWITCHES[switch](lora)
        with refusal("`memory`", "another model", "encode", model=model):
            model(QUESTION, memory=memory)
        model(LONG)
        assert pool.misses == 2 * misses and not pool.hits


def test_a_memory_fits_again_when_the_adapter_is_back_on() -> None:
    lora, model = over_lora()
    memory = model.encode(DOCUMENT)
    expected = answer(model, memory)
    for off in (lora.disable_adapter(), model.disable_adapter()):  # PEFT switches what is above off, too
        with off, refusal("`memory`", "the adapter is disabled", model=model):
            model(QUESTION, memory=memory)
        assert torch.equal(answer(model, memory), expected)


# Types


def autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("storage", ["device", "cpu", "int8", "disk"])
def test_a_memory_read_under_autocast_is_asked_without_it(storage: str) -> None:
    model = make_focus_model(dtype=torch.float32)
    with autocast():
        memory = model.encode(DOCUMENT, storage=storage)
    types = {side.dtype for layer in memory.store.layers for side in layer}
    assert torch.bfloat16 in types
    expected = answer(model, model.encode(DOCUMENT, storage=storage))
    found, again = answer(model, memory), answer(model, memory)
    assert found.dtype == torch.float32 and torch.equal(found, again)
    assert (found - expected).norm() / expected.norm() < 0.02
    assert {side.dtype for layer in memory.store.layers for side in layer} == types, "a memory stays as it was read"
    if storage == "device":  # the same numbers, held in the other type
        memory.store.layers = [(keys.float(), values.float()) for keys, values in memory.store.layers]
        torch.testing.assert_close(answer(model, memory), found, rtol=0, atol=1e-2)


def test_asking_under_autocast_leaves_a_memory_of_full_precision_as_it_is() -> None:
    model = make_focus_model(dtype=torch.float32)
    memory = model.encode(DOCUMENT)
    expected = answer(model, memory)
    with autocast():
        under = answer(model, memory)
        model.generate(QUESTION, memory=memory, max_new_tokens=3, do_sample=False)
    assert (under.float() - expected).norm() / expected.norm() < 0.05
    assert torch.equal(answer(model, memory), expected)


def test_chunks_that_are_kept_are_those_of_the_type_that_is_computed_in() -> None:
    model = make_focus_model(dtype=torch.float32)
    expected = model(LONG).logits
    with autocast():
        under = model(LONG).logits
    with model.keeping_chunks():
        with autocast():
            assert torch.equal(model(LONG).logits, under)
        assert torch.equal(model(LONG).logits, expected)
        with autocast():
            assert torch.equal(model(LONG).logits, under)


@pytest.mark.parametrize(
    "options", [{}, {"decoding": "exact"}, {"read_chunks": 1}], ids=["streaming", "exact", "read"]
)
def test_a_conversation_begun_under_autocast_goes_on_without(options: dict[str, Any]) -> None:
    model = make_focus_model(dtype=torch.float32)
    given = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    logits = []
    for begins in (autocast(), contextlib.nullcontext()):
        with begins:
            begun = model.generate(LONG, **given, **options)
        row = torch.cat([LONG, torch.full((1, 3), 5), QUESTION], dim=1)
        begun[CACHE].crop(-2)  # what the first turn chose is not what this is about
        logits.append(model.generate(row, **{CACHE: begun[CACHE]}, **given).logits[0])
    assert logits[0].dtype == torch.float32
    assert (logits[0] - logits[1]).norm() / logits[1].norm() < 0.1


def test_each_way_of_computing_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import focus_peft.encoding_tuner as tuner

    checks: list[int] = []
    original = tuner.check_reading
    monkeypatch.setattr(tuner, "check_reading", lambda *given: (checks.append(1), original(*given)))
    model = make_focus_model(dtype=torch.float32)
    for _ in range(2):
        model(LONG)
        with autocast():
            model(LONG)
    assert len(checks) == 2
    model.set_attn_implementation("eager")
    model(LONG)
    model(LONG)
    assert len(checks) == 3
    model.bfloat16()
    model(LONG)
    assert len(checks) == 4


def test_an_attention_that_cannot_be_used_is_refused_when_it_is_set_later() -> None:
    model = make_focus_model(dtype=torch.float32)
    expected = model(LONG).logits
    before = model.config._attn_implementation
    model.config._attn_implementation = "paged|sdpa"
    with refusal("`attn_implementation`", "paged|sdpa"):
        model(LONG)
    model.config._attn_implementation = before
    assert torch.equal(model(LONG).logits, expected)


# The vocabulary


def test_tokens_added_after_wrapping_are_read_and_removed_ones_refused() -> None:
    model = make_focus_model()
    expected, new = model(LONG).logits, LONG.clone()
    new[0, 7] = new[0, 38] = VOCABULARY + 1
    with refusal("`input_ids`", str(VOCABULARY + 1), f"vocabulary of {VOCABULARY}", model=model):
        model(new)
    memory = model.encode(DOCUMENT)
    model.resize_token_embeddings(VOCABULARY + 3, mean_resizing=False)
    torch.testing.assert_close(model(LONG).logits[..., :VOCABULARY], expected)
    assert model(new).logits.shape[-1] == VOCABULARY + 3
    assert model.generate(new, max_new_tokens=3).shape == (1, 43)
    loss = model(new, labels=new).loss
    assert torch.isfinite(loss)
    assert model.encode(new[0]).num_tokens == 40
    with refusal("`memory`", "vocabulary", "encode", model=model):
        model(QUESTION, memory=memory)
    model.resize_token_embeddings(100, mean_resizing=False)
    few = random_ids(40, vocabulary=100)[None]
    assert torch.isfinite(model(few).logits).all()
    few[0, 30] = 100
    for call in (model, model.generate, model.encode, lambda ids: model(ids, labels=ids)):
        with refusal("token id 100", "vocabulary of 100", model=model):
            call(few)
