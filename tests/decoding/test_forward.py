"""`forward` without labels: decoding loops of one's own, caches, and what is refused before anything is read."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from conftest import (
    PAD,
    each_decoding,
    make_focus_model,
    make_tiny_model,
    pad_rows,
    perturb_twins,
    random_ids,
    small_config,
)
from peft import PeftModel
from refusal import refusal
from transformers import DynamicCache, LogitsProcessor

from focus_peft.decoding.cache import FocusCache
from focus_peft.frozen.compat import CACHE


GREEDY: dict[str, Any] = {"do_sample": False, "pad_token_id": PAD}
LONG = random_ids(40)[None]
# `generate` computes scores in float32
ROUNDED = {"rtol": 1e-5, "atol": 1e-4}


def loop(model: PeftModel, ids: torch.Tensor, steps: int, **options: Any) -> torch.Tensor:
    """Greedy decoding as users write it: the newest token, and the cache that came back."""
    cache, new, found = None, ids, [ids]
    with torch.no_grad():
        for _ in range(steps):
            given = options if cache is None else {CACHE: cache}
            output = model(new, use_cache=True, **given)
            cache, new = output[CACHE], output.logits[:, -1:].argmax(-1)
            found.append(new)
    return torch.cat(found, dim=1)


@each_decoding
@pytest.mark.parametrize("length", [5, 8, 9, 40])
def test_a_loop_of_ones_own_equals_generate(length: int, decoding: str) -> None:
    model, ids = make_focus_model(decoding=decoding), LONG[:, :length]
    expected = model.generate(ids, max_new_tokens=20, **GREEDY)  # past the end of the window, where chunks are cut off
    assert torch.equal(loop(model, ids, 20), expected)


def test_a_loop_over_a_batch_and_behind_a_memory_equals_generate() -> None:
    model = make_focus_model()
    rows = torch.stack([random_ids(30, seed=1), random_ids(30, seed=2)])
    assert torch.equal(loop(model, rows, 6), model.generate(rows, max_new_tokens=6, **GREEDY))
    memory, question = model.encode(LONG), random_ids(5, seed=3)[None]
    expected = model.generate(question, memory=memory, max_new_tokens=6, **GREEDY)
    assert torch.equal(loop(model, question, 6, memory=memory), expected)


def test_a_cache_of_generate_goes_on_in_forward() -> None:
    model = make_focus_model()
    first = model.generate(LONG, max_new_tokens=4, return_dict_in_generate=True, **GREEDY)
    expected = model.generate(LONG, max_new_tokens=6, output_logits=True, return_dict_in_generate=True, **GREEDY)
    with torch.no_grad():
        output = model(first.sequences[:, -1:], **{CACHE: first[CACHE]})
    assert isinstance(output[CACHE], FocusCache)
    torch.testing.assert_close(output.logits[:, -1].float(), expected.logits[4], **ROUNDED)


def test_a_cache_with_another_setting_is_refused() -> None:
    model = make_focus_model()
    first = model.generate(LONG, max_new_tokens=4, return_dict_in_generate=True, **GREEDY)
    with refusal("`local_size`", f"`{CACHE}`"):
        model(first.sequences[:, -1:], local_size=4, **{CACHE: first[CACHE]})


def test_a_cache_of_the_base_model_is_its_own_within_the_window_and_refused_beyond() -> None:
    model, base = make_focus_model(), make_tiny_model()
    ids, cache = LONG[:, :6], DynamicCache()
    with torch.no_grad():
        output = model(ids, use_cache=True, **{CACHE: cache})
        assert torch.equal(output.logits, base(ids, **{CACHE: DynamicCache()}).logits)
        found = model(LONG[:, 6:8], **{CACHE: cache}).logits[:, -1]
        torch.testing.assert_close(found, base(LONG[:, :8]).logits[:, -1], rtol=0, atol=1e-9)
    with refusal(f"`{CACHE}`", "DynamicCache", "8 tokens", "`use_cache=True`"):
        model(LONG[:, 8:9], **{CACHE: cache})
    with refusal(f"`{CACHE}`", "0 tokens", "40"):
        model(LONG, **{CACHE: DynamicCache()})


def test_embeddings_are_refused_where_chunks_are_needed() -> None:
    model, base = make_focus_model(), make_tiny_model()
    embed = model.get_input_embeddings()
    with torch.no_grad():
        short = model(inputs_embeds=embed(LONG[:, :8])).logits
        assert torch.equal(short, base(inputs_embeds=embed(LONG[:, :8])).logits)
    with refusal("`inputs_embeds`", "40 tokens", "`input_ids`", model=model):
        model(inputs_embeds=embed(LONG))
    with refusal("`input_ids`", "`inputs_embeds`", model=model):
        model.generate(inputs_embeds=embed(LONG), max_new_tokens=2)
    memory = model.encode(LONG)
    with refusal("`inputs_embeds`", "`input_ids`", model=model):
        model(inputs_embeds=embed(LONG), memory=memory)


def test_positions_that_only_count_tokens_are_taken_and_others_refused() -> None:
    model = make_focus_model()
    rows, mask = pad_rows([random_ids(30, seed=1), random_ids(25, seed=2)])
    counted = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        expected = model(rows, attention_mask=mask).logits
        assert torch.equal(model(rows, attention_mask=mask, position_ids=counted).logits, expected)
    options = {"attention_mask": mask, "max_new_tokens": 4, **GREEDY}
    assert torch.equal(model.generate(rows, position_ids=counted, **options), model.generate(rows, **options))
    with refusal("`position_ids`"):
        model(rows, attention_mask=mask, position_ids=counted + 1)
    with refusal("`position_ids`"):
        model.generate(rows, position_ids=counted + 1, **options)


def test_adapter_names_that_are_unknown_or_not_active_are_refused() -> None:
    model = make_focus_model()
    model.add_adapter("other", small_config())
    expected = model.generate(LONG, max_new_tokens=3, **GREEDY)
    named = model.generate(LONG, adapter_names=["default"], max_new_tokens=3, **GREEDY)
    assert torch.equal(named, expected)
    for call in (model, lambda ids, **options: model.generate(ids, max_new_tokens=3, **options, **GREEDY)):
        with refusal("`adapter_names`", "'nobody'", "'default'"):
            call(LONG, adapter_names=["nobody"])
        with refusal("`adapter_names`", "'other'", "`set_adapter`"):
            call(LONG, adapter_names=["other"])


# The adapter beside other models


@pytest.mark.parametrize("length", [6, 40])
def test_an_adapter_may_draft_for_its_base_for_another_adapter_and_its_base_for_it(length: int) -> None:
    ids, base, model, other = LONG[:, :length], make_tiny_model(), make_focus_model(), make_focus_model()
    perturb_twins(other, std=0.3, seed=9)
    for main, assistant in ((base, model), (model, other), (model, model.get_base_model())):
        expected = main.generate(ids, max_new_tokens=8, **GREEDY)
        assert torch.equal(main.generate(ids, assistant_model=assistant, max_new_tokens=8, **GREEDY), expected)


class Contrast(LogitsProcessor):
    """Contrastive decoding with whatever model is asked, which a logits processor calls at every token."""

    def __init__(self, ask: Any) -> None:
        self.ask = ask

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.log_softmax(-1) - 0.3 * self.ask(input_ids).log_softmax(-1)


def test_a_processor_may_call_the_base_model_or_the_adapter_itself() -> None:
    model, base = make_focus_model(), make_tiny_model()
    inside = model.get_base_model()
    asked = {
        "the base model": (lambda ids: inside(ids).logits[:, -1], lambda ids: base(ids).logits[:, -1]),
        "the adapter": (lambda ids: model(ids[:, -20:], logits_to_keep=1).logits[:, -1],) * 2,
    }
    for within, apart in asked.values():
        found = model.generate(LONG, max_new_tokens=5, logits_processor=[Contrast(within)], **GREEDY)
        ids, new, cached = LONG, LONG, {}
        with torch.no_grad():
            for _ in range(5):
                output = model(new, use_cache=True, **cached)
                cached = {CACHE: output[CACHE]}
                chosen = new = Contrast(apart)(ids, output.logits[:, -1]).argmax(-1, keepdim=True)
                ids = torch.cat([ids, chosen], dim=1)
        assert torch.equal(found, ids)


def test_guidance_reads_the_negative_prompt_with_the_base_model() -> None:
    model, base, scale = make_focus_model(), make_tiny_model(), 1.7
    negative = random_ids(6, seed=5)[None]
    found = model.generate(
        LONG, guidance_scale=scale, negative_prompt_ids=negative, max_new_tokens=1, output_scores=True,
        return_dict_in_generate=True, **GREEDY,
    )  # fmt: skip
    with torch.no_grad():
        given = model(LONG, logits_to_keep=1).logits[:, -1].log_softmax(-1)
        without = base(negative).logits[:, -1].log_softmax(-1)
    expected = scale * (given - without) + without
    torch.testing.assert_close(found.scores[0].float(), expected.float(), **ROUNDED)


def test_a_negative_prompt_that_only_the_adapter_could_read_is_refused() -> None:
    model = make_focus_model()
    with refusal("`negative_prompt_ids` has 40 tokens", "`guidance_scale`", "local window of 8", model=model):
        model.generate(LONG, guidance_scale=1.5, negative_prompt_ids=LONG, max_new_tokens=2, **GREEDY)


def test_tuples_come_from_the_base_model_alone() -> None:
    model, short = make_focus_model(), LONG[:, :6]
    with torch.no_grad():
        for options in ({}, {"use_cache": True}):
            assert torch.equal(model(short, return_dict=False, **options)[0], make_tiny_model()(short).logits)
        with refusal("`return_dict=False`", "`to_tuple()`", model=model):
            model(LONG, return_dict=False)


def test_what_the_models_configuration_asks_for_is_given_for_short_inputs() -> None:
    model = make_focus_model()
    model.get_base_model().config.output_hidden_states = True
    with torch.no_grad():
        assert len(model(LONG[:, :6]).hidden_states) == 3


def test_an_attribute_error_while_the_model_is_tried_is_told() -> None:
    model = make_focus_model()
    handle = model.get_base_model().model.layers[1].register_forward_hook(lambda *args: None.foo)  # type: ignore[attr-defined]
    with pytest.raises(
        RuntimeError, match="could not be tried on a few tokens: 'NoneType' object has no attribute 'foo'"
    ):
        model.generate(LONG, max_new_tokens=2, **GREEDY)
    handle.remove()
    model.generate(LONG, max_new_tokens=2, **GREEDY)


@pytest.mark.parametrize("length", [6, 40])
def test_a_loss_on_logits_fails_with_a_sentence_in_its_backward_pass(length: int) -> None:
    model = make_focus_model().train()
    logits = model(LONG[:, :length]).logits
    with torch.no_grad():
        assert torch.equal(logits, model(LONG[:, :length]).logits)
        assert not model(LONG[:, :length]).logits.requires_grad
    with refusal("`labels`", "`FocusTrainer`", "`FocusSFTTrainer`"):
        logits.square().mean().backward()
    assert not model.eval()(LONG[:, :length]).logits.requires_grad


def test_as_many_logits_as_there_are_new_tokens_and_no_fewer_than_asked_for() -> None:
    model = make_focus_model()
    first = model(LONG, use_cache=True)
    behind = model(random_ids(2, seed=3)[None], logits_to_keep=3, **{CACHE: first[CACHE]})
    assert behind.logits.shape[1] == 2 and behind[CACHE].streams[0].ids == [*LONG[0], *random_ids(2, seed=3)]
    rows, mask = pad_rows([random_ids(2, seed=1), random_ids(30, seed=2)])
    with refusal("`logits_to_keep` is 3, but row 0 of `input_ids` has 2 new tokens", model=model):
        model(rows, attention_mask=mask, use_cache=True, logits_to_keep=3)


def test_a_cache_of_the_base_model_beside_a_memory_is_refused() -> None:
    model = make_focus_model()
    memory = model.encode(LONG)
    with refusal(f"`{CACHE}`", "not possible with chunks", model=model):
        model(LONG[:, :4], memory=memory, **{CACHE: DynamicCache()})


def test_an_option_of_none_is_not_given() -> None:
    model, newest = make_focus_model(), random_ids(1, seed=3)[None]
    found = [
        model(newest, **options, **{CACHE: model(LONG, use_cache=True)[CACHE]})
        for options in ({}, {"local_size": None})
    ]
    assert torch.equal(found[0].logits, found[1].logits)


def test_a_memory_without_anything_to_read_is_refused() -> None:
    model = make_focus_model()
    memory = model.encode(LONG)
    with refusal("`input_ids` is missing", model=model):
        model(memory=memory)


# transformers reminds of the length of a text; one that is read in chunks may be longer than the model


@pytest.fixture
def reminded(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    logger = logging.getLogger("transformers.generation.stopping_criteria")
    logger.addHandler(caplog.handler)  # transformers' loggers do not propagate
    logging.Logger.warning_once.cache_clear()  # type: ignore[attr-defined]
    with caplog.at_level(logging.WARNING, logger=logger.name):
        yield caplog
    logger.removeHandler(caplog.handler)


def test_only_texts_that_are_not_read_in_chunks_are_called_too_long(reminded: pytest.LogCaptureFixture) -> None:
    base = {"max_position_embeddings": 64}
    ids, options = random_ids(100)[None], {"max_new_tokens": 2, "do_sample": False, "pad_token_id": PAD}
    make_tiny_model(**base).generate(ids, attention_mask=torch.ones_like(ids), **options)
    assert "maximum length" in reminded.text
    reminded.clear()
    logging.Logger.warning_once.cache_clear()  # type: ignore[attr-defined]
    make_focus_model(base=base, chunk_size=16).generate(ids, **options)
    assert "maximum length" not in reminded.text
