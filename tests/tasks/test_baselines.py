"""Every baseline equals a slow computation of its own definition, on tiny models."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from conftest import make_focus_model
from refusal import refusal
from torch.nn.functional import cross_entropy
from training import document
from transformers.cache_utils import DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from focus_peft.frozen.compat import CACHE
from focus_peft.tasks import METHODS, Adapter, FullAttention, LocalWindow
from focus_peft.tasks.methods.bm25 import BM25, bm25
from focus_peft.tasks.methods.fused_ranking import FusedRanking, fused
from focus_peft.tasks.methods.label_blocks import label_blocks
from focus_peft.tasks.methods.parallel_windows import ParallelWindows
from focus_peft.tasks.methods.scaled_rope import ScaledRope
from focus_peft.tasks.methods.streaming_llm import StreamingLLM
from focus_peft.tasks.methods.untrained_twins import UntrainedTwins


def losses_of(logits: torch.Tensor, ids: list[int]) -> torch.Tensor:
    """Of the last `len(logits)` ids."""
    return cross_entropy(logits.float(), torch.tensor(ids[len(ids) - len(logits) :]), reduction="none")


def assert_close(found: torch.Tensor, expected: torch.Tensor, atol: float = 1e-6) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn"])
def test_scaled_positions_are_those_of_a_model_that_was_loaded_with_them(kind: str) -> None:
    model = make_focus_model(base={"max_position_embeddings": 64})
    base: Any = model.get_base_model()
    method = ScaledRope(model, kind)
    ids = document(96)
    config = copy.deepcopy(base.config)
    factor: dict[str, Any] = {"factor": 1.0 if kind == "dynamic" else 96 / 64}
    config.rope_parameters = {**config.rope_parameters, "rope_type": kind, **factor}
    if kind == "yarn":
        config.rope_parameters["original_max_position_embeddings"] = 64
    scaled: Any = make_focus_model(base={"max_position_embeddings": 64, "rope_parameters": config.rope_parameters})
    plain = FullAttention(model).losses(ids, 10)
    with torch.no_grad():
        expected = losses_of(scaled.get_base_model()(torch.tensor([ids[:-1]])).logits[0, -10:], ids)
    found = method.losses(ids, 10)
    assert_close(found, expected)
    assert not torch.allclose(found, plain)
    assert torch.equal(FullAttention(model).losses(ids, 10), plain), "the base model is as it was"
    short = ids[:60]
    assert torch.equal(method.losses(short, 5), FullAttention(model).losses(short, 5))
    assert method.generate(short, 4) == FullAttention(model).generate(short, 4)
    assert len(method.generate(ids, 4)) == 4 and method.refusal(10**6) is None


def test_positions_that_cannot_be_scaled_are_refused() -> None:
    with refusal("`model`", "'yarn'"):
        ScaledRope(make_focus_model("gpt2"), "yarn")


def test_bm25_scores_are_the_formulas() -> None:
    documents = [[1, 2, 2, 3], [1, 4], [5, 5, 5, 5, 5, 2]]
    mean = 12 / 3
    expected = []
    for words in documents:
        score = 0.0
        for word, held in ((2, 2), (4, 1)):
            count = words.count(word)
            weight = math.log(1 + (3 - held + 0.5) / (held + 0.5))
            score += weight * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * len(words) / mean))
        expected.append(score)
    assert bm25(documents, [2, 4, 2]) == pytest.approx(expected)
    assert bm25([], [2]) == [] and bm25(documents, [9]) == [0.0, 0.0, 0.0]


def test_retrieval_reads_the_best_chunks_in_their_order() -> None:
    model = make_focus_model()  # chunks of 8, a window of 8, a prompt of 4
    ids = [3] * 8 + [50, 51, *[3] * 6] + [4] * 8 + [52, *[4] * 7] + [5] * 8 + [6] * 4 + [50, 51, 52, 7]
    method = BM25(model, chunks=2)
    assert method.read(ids, 40) == [1, *ids[8:16], *ids[24:32], *ids[40:]]
    assert BM25(model, chunks=9).read(ids, 40) == [1, *ids]
    base: Any = model.get_base_model()
    answer = base.generate(torch.tensor([method.read(ids, 40)]), max_new_tokens=3, do_sample=False)
    assert method.generate(ids, 3) == answer[0, -3:].tolist()
    assert BM25(model, chunks=14).refusal(10**6, 7) is None, "14 chunks, a window and 7 tokens fit 128 positions"
    assert "14 chunks" in str(BM25(model, chunks=14).refusal(10**6, 8))
    assert method.refusal(10**6) is None and "20 chunks" in str(BM25(model, chunks=20).refusal(10**6))


@pytest.mark.parametrize("kind", [BM25, FusedRanking])
def test_retrieval_takes_sizes_of_its_own(kind: Any) -> None:
    ids, sizes = document(44), {"local_size": 12, "prompt_size": 6}
    method, wanted = kind(make_focus_model(), chunks=2, **sizes), kind(make_focus_model(**sizes), chunks=2)
    assert method.read(ids, 32) == wanted.read(ids, 32) and method.generate(ids, 4) == wanted.generate(ids, 4)


def test_reciprocal_ranks_are_added() -> None:
    scores = fused([5.0, 9.0, 1.0], [0.2, 0.1, 0.9])
    assert scores == pytest.approx([1 / 62 + 1 / 62, 1 / 61 + 1 / 63, 1 / 63 + 1 / 61])
    assert fused([], []) == []


def test_fused_retrieval_reads_what_both_rankings_have_in_front() -> None:
    model = make_focus_model()
    ids = document(44)  # 36 before the window: four chunks and a short one
    (looked,) = model.chunk_scores(torch.tensor([ids]))
    words = bm25([ids[start : min(start + 8, 36)] for start in range(0, 36, 8)], ids[40:])
    total = fused(words, looked.tolist())
    best = sorted(sorted(range(5), key=lambda number: -total[number])[:2])
    method = FusedRanking(model, chunks=2)
    assert method.read(ids, 36) == [1, *[i for n in best for i in ids[8 * n : min(8 * n + 8, 36)]], *ids[36:]]
    assert len(method.generate(ids, 3)) == 3 and len(method.losses(ids, 12)) == 12


def test_the_adapter_reads_chunks_as_generate_does() -> None:
    model = make_focus_model()
    ids = document(40)
    method = METHODS["adapter_read"](model, read_chunks=2)
    expected = model.generate(torch.tensor([ids]), max_new_tokens=5, do_sample=False, read_chunks=2)
    assert method.generate(ids, 5) == expected[0, 40:].tolist()
    logits = model(torch.tensor([ids[:-1]]), logits_to_keep=12, read_chunks=2).logits[0]
    assert_close(
        method.losses(ids, 12),
        torch.nn.functional.cross_entropy(logits.float(), torch.tensor(ids[-12:]), reduction="none"),
    )
    assert "`read_chunks`" in str(METHODS["adapter_read"](model, read_chunks=20).refusal(300))


def test_parallel_windows_attend_to_all_chunks_from_position_zero() -> None:
    model = make_focus_model()
    base: Any = model.get_base_model()
    ids, labels = document(37), 5  # the window starts at 24: three chunks
    cache = DynamicCache()
    with torch.no_grad():
        read = [base(torch.tensor([ids[start : start + 8]]))[CACHE] for start in (0, 8, 16)]
        for layer in range(base.config.num_hidden_layers):
            keys = torch.cat([states.layers[layer].keys for states in read], dim=2)
            cache.update(keys, torch.cat([states.layers[layer].values for states in read], dim=2), layer)
        logits = []
        for place, token in enumerate([1, *ids[24:36]]):
            mask, position = torch.ones(1, 25 + place), torch.tensor([[8 + place]])
            output = base(torch.tensor([[token]]), attention_mask=mask, position_ids=position, **{CACHE: cache})
            logits.append(output.logits[0, -1])
    assert_close(ParallelWindows(model).losses(ids, labels), losses_of(torch.stack(logits[-5:]), ids))


def test_streaming_llm_is_attention_to_sinks_and_a_recent_window_at_positions_within_the_cache() -> None:
    model = make_focus_model(local_size=12, chunk_size=16)
    base: Any = model.get_base_model()
    ids, labels = document(50), 6
    # the window starts at 32; blocks are a quarter of it
    expected = reference_streaming(base, ids[:-1], window=12, size=3, starts=[0, 32])[-labels:]
    assert_close(StreamingLLM(model).losses(ids, labels), losses_of(expected, ids))


def reference_streaming(base: Any, ids: list[int], window: int, size: int, starts: list[int]) -> torch.Tensor:
    """Keys are kept unrotated, and all that a block sees are rotated anew, to their places in the cache."""
    rotary = base.model.rotary_emb
    layers: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in base.model.layers]

    def rotate(keys: torch.Tensor, positions: list[int]) -> torch.Tensor:
        cos, sin = rotary(keys, torch.tensor([positions]))
        return apply_rotary_pos_emb(keys, keys, cos, sin)[1]

    def unrotate(keys: torch.Tensor, positions: list[int]) -> torch.Tensor:
        return rotate(keys, [-position for position in positions])

    logits = []
    ends = []
    for first, last in zip(starts, [*starts[1:], len(ids)]):
        begin = first
        while begin < last:
            end = min(begin + size, last)
            # the sinks are a block of their own
            ends += [4] if begin < 4 < end else []
            ends.append(end)
            begin = end
    begin = 0
    for end in ends:
        block = ids[begin:end]
        seen = [t for t in range(begin) if t < 4 or t >= begin - (window - len(block))]
        places = list(range(len(seen) + len(block)))
        cache = DynamicCache()
        for number, states in enumerate(layers):
            if seen:
                keys = torch.cat([states[t][0] for t in seen], dim=2)
                values = torch.cat([states[t][1] for t in seen], dim=2)
                cache.update(rotate(keys, places[: len(seen)]), values, number)
        with torch.no_grad():
            output = base(
                torch.tensor([block]),
                attention_mask=torch.ones(1, len(places)),
                position_ids=torch.tensor([places[len(seen) :]]),
                **{CACHE: cache},
            )
        for number, states in enumerate(layers):
            keys = unrotate(cache.layers[number].keys, places)
            for offset in range(len(block)):
                at = slice(len(seen) + offset, len(seen) + offset + 1)
                states.append((keys[:, :, at], cache.layers[number].values[:, :, at]))
        logits.append(output.logits[0])
        begin = end
    return torch.cat(logits)


@pytest.mark.parametrize("local_size", [8, 20])
@pytest.mark.parametrize("kind", [ParallelWindows, StreamingLLM])
def test_every_token_is_scored_as_in_a_block_of_its_own_and_the_memory_is_read_once(
    kind: Any, local_size: int
) -> None:
    model = make_focus_model(local_size=local_size, chunk_size=10)
    method = kind(model)
    ids = document(50)
    read: list[int] = []
    embedding = model.get_base_model().get_input_embeddings()  # type: ignore[operator]
    handle = embedding.register_forward_pre_hook(lambda _, given: read.append(given[0].shape[1]))
    found = method.losses(ids, 49)
    handle.remove()
    # windows of local + chunk tokens, one for each chunk, and the memory; StreamingLLM reads the sinks again with each
    # block
    windows = (local_size + 10 + 1) * 5
    assert sum(read) <= (windows + 50) * (1 if kind is ParallelWindows else 4)
    for block in label_blocks(50, 49, method.settings.sizes):
        alone = method.losses(ids[: block.end], block.end - block.first)
        assert_close(found[block.first - 1 : block.end - 1], alone)


def test_streaming_llm_with_room_for_everything_is_the_base_model() -> None:
    model = make_focus_model(local_size=60, chunk_size=16)
    ids = document(50)
    assert_close(StreamingLLM(model).losses(ids, 8), FullAttention(model).losses(ids, 8))
    assert StreamingLLM(model).generate(ids, 6) == FullAttention(model).generate(ids, 6)


def test_what_fits_the_window_is_the_base_models_in_every_method() -> None:
    model = make_focus_model(local_size=32)
    ids = document(30)
    for name, make in METHODS.items():
        assert make(model).generate(ids, 4) == FullAttention(model).generate(ids, 4), name
        assert_close(make(model).losses(ids, 4), FullAttention(model).losses(ids, 4))


def test_untrained_twins_are_the_frozen_projections() -> None:
    model = make_focus_model()
    ids = document(40)
    trained = Adapter(model).losses(ids, 5)
    found = UntrainedTwins(model).losses(ids, 5)
    assert torch.equal(Adapter(model).losses(ids, 5), trained), "the twins are used again"
    answer = UntrainedTwins(model).generate(ids, 5)
    fresh = make_focus_model(r=4)
    for name, parameter in fresh.named_parameters():
        if ".focus_B." in name:
            parameter.data.zero_()
    assert_close(found, Adapter(fresh).losses(ids, 5))
    assert answer == Adapter(fresh).generate(ids, 5)
    assert not torch.allclose(found, trained)


def test_the_static_prompt_is_one_token_long() -> None:
    model = make_focus_model()
    ids = document(40)
    static = METHODS["static_prompt"](model)
    assert static.settings.sizes.prompt == 1
    assert torch.equal(static.losses(ids, 5), Adapter(model, prompt_size=1).losses(ids, 5))
    assert not torch.allclose(static.losses(ids, 5), Adapter(model).losses(ids, 5))


def test_an_answer_ends_with_the_end_token() -> None:
    model = make_focus_model()
    base: Any = model.get_base_model()
    ids = document(40)
    for kind in (ParallelWindows, StreamingLLM, LocalWindow, Adapter):
        base.generation_config.eos_token_id = None
        whole = kind(model).generate(ids, 6)
        base.generation_config.eos_token_id = whole[2]
        end = whole.index(whole[2]) + 1
        assert kind(model).generate(ids, 6) == whole[:end]


def test_models_that_a_baseline_cannot_read_are_told() -> None:
    model = make_focus_model("gpt2")
    assert "rotary" in str(StreamingLLM(model).refusal(10)) and "rotary" in str(ParallelWindows(model).refusal(10))
