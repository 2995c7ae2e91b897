"""Attention implementations. FlashAttention's kernel needs a GPU: a function that computes the same stands in for it
here.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from conftest import IDS, each_decoding, each_rank, logits_of, make_tiny_model, perturb_twins, small_config
from peft import PeftModel, get_peft_model
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import flash_attention_mask

from focus_peft import FocusConfig
from focus_peft.frozen.attention import install_attention, is_switched, masked_implementation, uninstall_attention
from focus_peft.frozen.current_pass import Pass


FLASH = ["flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2"]
# rotary and learned positions, grouped heads, sliding windows, soft-capping
FAMILIES = ["llama", "mistral", "gemma2", "gpt2"]


class StandIn:
    """What a flash kernel computes, with what it cannot do asserted: causal attention, by `is_causal` and never by a
    mask.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        assert attention_mask is None, "neither padding nor a mask was expected"
        queries, keys = query.shape[2], key.shape[2]
        self.tokens.append(queries)
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        distance = torch.arange(queries)[:, None] + keys - queries - torch.arange(keys)
        seen = (distance >= 0) & (distance < (sliding_window or keys))
        weights = F.softmax(scores.masked_fill(~seen, float("-inf")), dim=-1)
        return (weights @ value).transpose(1, 2).contiguous(), None


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    """Takes the place of every flash kernel."""
    kernel = StandIn()
    functions, masks = dict(AttentionInterface._global_mapping), dict(AttentionMaskInterface._global_mapping)
    for name in FLASH:
        AttentionInterface.register(name, kernel)
        AttentionMaskInterface.register(name, flash_attention_mask)
    yield kernel
    for interface, before in ((AttentionInterface, functions), (AttentionMaskInterface, masks)):
        interface._global_mapping.clear()
        interface._global_mapping.update(before)


def implemented_by(name: str, family: str = "llama", **fields: Any) -> PeftModel:
    model = make_tiny_model(family)
    # what `attn_implementation=name` sets where the kernel is installed
    model.config._attn_implementation = name
    torch.manual_seed(0)
    wrapped = get_peft_model(model, small_config(**fields)).eval()
    perturb_twins(wrapped)
    return wrapped


def reference(family: str = "llama", **fields: Any) -> PeftModel:
    return implemented_by("eager" if family == "gemma2" else "sdpa", family, **fields)


@each_decoding
@pytest.mark.parametrize(
    ("family", "name"), [*((family, FLASH[0]) for family in FAMILIES), *(("llama", name) for name in FLASH[1:])]
)
def test_flash_attention_reads_the_chunks_and_masked_passes_go_without(
    family: str, name: str, decoding: str, stand_in: StandIn
) -> None:
    model, expected = implemented_by(name, family, decoding=decoding), reference(family, decoding=decoding)
    torch.testing.assert_close(logits_of(model), logits_of(expected), rtol=0, atol=1e-6)
    options = {"max_new_tokens": 12, "do_sample": False}
    assert torch.equal(model.generate(IDS, **options), expected.generate(IDS, **options))
    assert 8 in stand_in.tokens, "chunks of 8 tokens"
    assert model.get_base_model().config._attn_implementation == name


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "gradient checkpointing"])
@each_rank
def test_gradients_with_flash_attention_are_those_without_it(
    r: int | None, checkpointing: bool, stand_in: StandIn
) -> None:
    found = []
    for model in (implemented_by(FLASH[0], r=r), reference(r=r)):
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable()
        model.train()(IDS, labels=IDS, generator=torch.Generator().manual_seed(0)).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert stand_in.tokens and found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-6, atol=1e-6)


def test_without_a_memory_flash_attention_alone_runs(stand_in: StandIn) -> None:
    model = implemented_by(FLASH[0])
    _ = model.base_model.reader
    stand_in.tokens.clear()
    with torch.no_grad():
        torch.testing.assert_close(model(IDS[:, :8]).logits, make_tiny_model()(IDS[:, :8]).logits, rtol=0, atol=1e-6)
    assert stand_in.tokens == [8, 8]


@pytest.mark.filterwarnings("ignore:_compile flag:DeprecationWarning")  # of transformers' own call
@each_decoding
def test_flex_attention_reads_the_chunks(decoding: str) -> None:
    found = []
    for name in ("flex_attention", "sdpa"):
        sizes = {"head_dim": 16, "num_attention_heads": 4}  # the kernel takes no smaller heads
        base = make_tiny_model(dtype=torch.float32, attn_implementation=name, **sizes)
        config = FocusConfig(chunk_size=16, local_size=8, prompt_size=4, decoding=decoding)
        model = get_peft_model(base, config).eval()
        perturb_twins(model)
        with torch.compiler.set_stance("force_eager"):  # compiling it for a CPU takes minutes
            found.append(logits_of(model))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def attention_of(model: PreTrainedModel) -> set[str]:
    """What the attention modules of a model take for their implementation."""
    modules = [module for module in model.modules() if type(module).__name__.endswith("Attention")]
    return {module.config._attn_implementation for module in modules}


def test_only_attention_modules_see_another_implementation_and_only_in_a_pass() -> None:
    model = make_tiny_model()
    install_attention(model.modules())
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(KeyError), Pass(masked="sdpa").running():
        assert attention_of(model) == {"sdpa"} and model.config._attn_implementation == "flash_attention_2"
        with ThreadPoolExecutor(1) as other:
            assert other.submit(attention_of, model).result() == {"flash_attention_2"}
        raise KeyError
    assert attention_of(model) == {"flash_attention_2"}
    uninstall_attention(model.modules())
    assert all(module.config is model.config for module in model.modules() if hasattr(module, "config"))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_of_a_model_have_copies_of_its_configuration(copied: Callable[[Any], Any]) -> None:
    model = make_tiny_model(dtype=torch.float32)
    install_attention(model.modules())
    other = copied(model)
    other.config._attn_implementation = "eager"
    assert attention_of(other) == {"eager"} and attention_of(model) == {"sdpa"}


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_an_implementation_that_takes_masks_is_never_switched(name: str) -> None:
    model = make_tiny_model(attn_implementation=name)
    install_attention(model.modules())
    with Pass(masked="other").running():
        assert attention_of(model) == {name}
    assert not is_switched(name)


def test_soft_capping_is_not_lost_by_switching() -> None:
    # sdpa would leave it out without a word
    assert masked_implementation(make_tiny_model("gemma2")) == "eager"
    assert masked_implementation(make_tiny_model("llama")) == "sdpa"
