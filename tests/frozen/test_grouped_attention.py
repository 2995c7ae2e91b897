"""`grouped_sdpa`: attention of grouped queries without repeated keys, held to transformers' own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import make_focus_model, make_tiny_model, random_ids
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from focus_peft.frozen.attention import in_pass
from focus_peft.frozen.current_pass import Pass
from focus_peft.frozen.grouped_attention import BLOCK, GROUPED, MOST_QUERIES, grouped_sdpa, is_grouped, shape_of


def states(rows: int, heads: int, shared: int, tokens: int, keys: int) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    visible = torch.rand(rows, 1, tokens, keys, generator=generator) < 0.7
    visible[..., 0] = True
    mask = torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, torch.finfo(torch.float64).min)
    return draw(rows, heads, tokens, 8), draw(rows, shared, keys, 8), draw(rows, shared, keys, 8), mask


@pytest.mark.parametrize("tokens", [1, 2, 5, MOST_QUERIES // 3 + 1])
@pytest.mark.parametrize("shared", [1, 2, 6])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_grouped_attention_equals_attention_with_repeated_keys(
    tokens: int, shared: int, scaling: float | None
) -> None:
    query, key, value, mask = states(3, 6, shared, tokens, 11)
    module: Any = SimpleNamespace(num_key_value_groups=6 // shared, is_causal=True)
    found, _ = grouped_sdpa(module, query, key, value, mask, scaling=scaling)
    expected, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=scaling)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


MANY, PREFIX = 2 * BLOCK + 70, 9
IN_BLOCKS = [(0, 256, 265), (256, 512, 521), (512, 582, 591)]


@pytest.mark.parametrize("shared", [1, 2, 6])
@pytest.mark.parametrize(
    ("rows_alike", "is_whole_mask", "shape"),
    [(True, True, PREFIX), (True, False, IN_BLOCKS), (False, True, IN_BLOCKS)],
)
def test_many_queries_see_what_they_see_at_once(
    shared: int, rows_alike: bool, is_whole_mask: bool, shape: Any
) -> None:
    query, key, value, _ = states(2, 6, shared, MANY, PREFIX + MANY)
    visible = torch.ones(1, MANY, PREFIX + MANY, dtype=torch.bool).tril(PREFIX)
    if not rows_alike:  # the second row is shorter, and sees less of the prefix
        visible = visible.repeat(2, 1, 1)
        visible[1, :, :4] = False
        visible[1, 100:, PREFIX + 100 :] = False
    mask = torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, torch.finfo(torch.float64).min)
    mask = mask[:, None].expand(2, -1, -1, -1)
    module: Any = SimpleNamespace(num_key_value_groups=6 // shared, is_causal=True)
    with torch.no_grad():
        found_shape = shape_of(visible, is_whole_mask)
        assert found_shape == shape
        with Pass(shape=found_shape).running():
            found, _ = grouped_sdpa(module, query, key, value, mask, scaling=0.3)
    expected, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_short_passes_and_graphs_have_no_shape() -> None:
    visible = torch.ones(1, BLOCK + 1, BLOCK + 1, dtype=torch.bool).tril()
    assert shape_of(visible, True) is None
    with torch.no_grad():
        assert shape_of(visible[:, 1:], True) is None


def test_without_a_mask_attention_is_causal_as_ever() -> None:
    query, key, value, _ = states(2, 4, 2, 7, 7)
    module: Any = SimpleNamespace(num_key_value_groups=2, is_causal=True)
    found, _ = grouped_sdpa(module, query, key, value, None)
    assert torch.equal(found, sdpa_attention_forward(module, query, key, value, None)[0])


@pytest.mark.parametrize(
    ("family", "grouped"), [("llama", True), ("gpt2", False), ("gpt_neox", False), ("bloom", False)]
)
def test_only_models_whose_queries_share_keys_have_their_attention_exchanged(family: str, grouped: bool) -> None:
    assert is_grouped(make_tiny_model(family)) is grouped


def test_grouped_attention_takes_the_place_of_sdpa_alone() -> None:
    assert in_pass(Pass(grouped=True), "sdpa") == GROUPED
    assert in_pass(Pass(grouped=True), "eager") == "eager"
    assert in_pass(Pass(grouped=False), "sdpa") == "sdpa"


def test_a_streaming_step_is_the_same_with_and_without_it() -> None:
    model, ids = make_focus_model("llama"), random_ids(40)[None]
    reader = model.base_model.reader
    assert reader.groups
    options = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    grouped = model.generate(ids, **options)
    reader.groups = False
    repeated = model.generate(ids, **options)
    assert torch.equal(grouped.sequences, repeated.sequences)
    for found, expected in zip(grouped.logits, repeated.logits):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("decoding", ["exact", "streaming"])
def test_a_long_local_window_reads_the_same_whatever_attention_knows_of_its_shape(
    family: str, decoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base: dict[str, Any] = {
        "max_position_embeddings": 1024,
        **({"sliding_window": 700} if family == "mistral" else {}),
    }
    model = make_focus_model(family, base=base, chunk_size=16, local_size=600, prompt_size=8, decoding=decoding)
    ids = random_ids(650)[None]
    shapes = []

    def noted(visible: torch.Tensor, is_whole_mask: bool) -> Any:
        shapes.append(shape_of(visible, is_whole_mask))
        return shapes[-1]

    with torch.no_grad():
        monkeypatch.setattr("focus_peft.passes.reader.shape_of", noted)
        found = model(ids, logits_to_keep=3).logits
        causal = decoding == "exact" and family == "llama"
        assert any(isinstance(shape, int if causal else list) for shape in shapes)
        monkeypatch.setattr("focus_peft.frozen.grouped_attention.BLOCK", 10**6)
        expected = model(ids, logits_to_keep=3).logits
        assert shapes[-1] is None
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
