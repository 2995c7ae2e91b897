"""Presses of kvpress as methods: what their names say, and that they leave out what they should and change no model.

kvpress needs an environment of its own (`make test-kvpress`); in others, only names are tested.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_focus_model, save_base, small_config
from evaluating.configuration import Evaluation, TaskArguments
from lib.base_model import ModelArguments
from peft import get_peft_model
from refusal import refusal
from torch.nn.functional import cross_entropy
from training import document
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicCache

from focus_peft.frozen.compat import CACHE
from focus_peft.tasks import Adapter, FullAttention, method_named


needs_kvpress = pytest.mark.skipif(find_spec("kvpress") is None, reason="kvpress is not installed")
SINKS = 4  # of kvpress's StreamingLLM


def make_model(**base: Any) -> Any:
    return make_focus_model(dtype=torch.float32, base={"max_position_embeddings": 256, **base})


def evaluation(name: str) -> Evaluation:
    return Evaluation(
        ModelArguments(random={}), {"passkey": TaskArguments()}, {"full_attention": {}, name: {}}, [4096]
    )


@pytest.mark.parametrize(
    "name", ["kvpress:SnapKV", "kvpress:@0.5", "kvpress:SnapKV@1", "kvpress:SnapKV@-0.5", "kvpress:SnapKV@half"]
)
def test_a_press_without_a_name_or_a_ratio_is_refused_before_anything_is_loaded(name: str) -> None:
    with refusal("`methods`", repr(name), "from 0 to below 1", "'kvpress:SnapKV@0.5'"):
        evaluation(name)


def test_another_unknown_method_is_told_how_presses_are_named() -> None:
    with refusal("`methods`", "`SnapKV`", "full_attention", "kvpress:CLASS@RATIO"):
        evaluation("SnapKV")


@pytest.mark.skipif(find_spec("kvpress") is not None, reason="kvpress is installed")
def test_without_kvpress_its_presses_are_refused_before_anything_is_loaded() -> None:
    with refusal("`methods`", "'kvpress:SnapKV@0.5'", "is not installed", "`make test-kvpress`"):
        evaluation("kvpress:SnapKV@0.5")


@needs_kvpress
def test_what_kvpress_does_not_have_or_make_is_refused_before_anything_is_loaded() -> None:
    with refusal("`methods`", "'SnapQV'", "SnapKV", "ExpectedAttention"):
        evaluation("kvpress:SnapQV@0.5")
    with refusal("`methods`", "'kvpress:AdaKV@0.5'", "'kvpress:AdaKV:SnapKV@0.5'"):
        evaluation("kvpress:AdaKV@0.5")
    assert list(evaluation("kvpress:AdaKV:SnapKV@0.5").methods) == ["full_attention", "kvpress:AdaKV:SnapKV@0.5"]


@needs_kvpress
def test_a_model_that_kvpress_does_not_know_is_refused() -> None:
    with refusal("`model`", "GPT2LMHeadModel", "LlamaForCausalLM"):
        method_named("kvpress:Knorm@0.5")(make_focus_model("gpt2"))
    with refusal("`question_size`", "0"):
        method_named("kvpress:Knorm@0.5")(make_model(), question_size=0)


@needs_kvpress
@pytest.mark.parametrize("question", [1, 20])
@pytest.mark.parametrize("press", ["SnapKV", "Knorm", "ExpectedAttention", "StreamingLLM", "KeyRerotation:Knorm"])
def test_a_press_that_leaves_nothing_out_is_full_attention(press: str, question: int) -> None:
    model = make_model()
    ids = document(150)
    method = method_named(f"kvpress:{press}@0")(model, question_size=question)
    assert method.generate(ids, 8) == FullAttention(model).generate(ids, 8)
    torch.testing.assert_close(method.losses(ids, 20), FullAttention(model).losses(ids, 20), rtol=0, atol=1e-4)
    assert method.generate(ids[:1], 3) == FullAttention(model).generate(ids[:1], 3)
    assert method.refusal(257) == FullAttention(model).refusal(257) != method.refusal(256) is None


@needs_kvpress
@pytest.mark.parametrize("question", [1, 20])
def test_what_is_left_out_is_not_seen_behind_the_prompt(question: int) -> None:
    model = make_model()
    ids, labels = document(120), 10
    context = len(ids) - labels - question
    left_out = slice(SINKS, SINKS + context - context // 2)
    mask = torch.ones(1, len(ids) - 1, dtype=torch.long)
    mask[0, left_out] = 0
    base, cache = model.get_base_model(), DynamicCache()
    with torch.no_grad():
        base(torch.tensor([ids[:context]]), use_cache=True, **{CACHE: cache})
        positions = torch.arange(context, len(ids) - 1)[None]
        output = base(torch.tensor([ids[context:-1]]), attention_mask=mask, position_ids=positions, **{CACHE: cache})
    expected = cross_entropy(output.logits[0, -labels:], torch.tensor(ids[-labels:]), reduction="none")
    found = method_named("kvpress:StreamingLLM@0.5")(model, question_size=question).losses(ids, labels)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert not torch.allclose(found, FullAttention(model).losses(ids, labels), atol=1e-2)


@needs_kvpress
@pytest.mark.parametrize("press", ["SnapKV", "AdaKV:ExpectedAttention", "KVzip", "PyramidKV"])
def test_a_press_leaves_the_model_as_it_was(press: str, tmp_path: Path) -> None:
    save_base(tmp_path, max_position_embeddings=256, num_attention_heads=4, num_key_value_heads=2)
    base = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    model = get_peft_model(base, small_config()).eval()
    ids = document(200)
    method = method_named(f"kvpress:{press}@0.5")(model)

    def state() -> Any:
        modules = base.named_modules()
        return {name: (type(module), sorted(vars(module)), list(module._modules)) for name, module in modules}

    others = [FullAttention(model), Adapter(model)]
    before = [other.losses(ids, 10).tolist() for other in others]
    built = state()
    first, losses = method.generate(ids, 5), method.losses(ids, 10)
    assert state() == built
    assert [other.losses(ids, 10).tolist() for other in others] == before
    assert method.generate(ids, 5) == first and torch.equal(method.losses(ids, 10), losses)
    assert losses.tolist() != before[0]
