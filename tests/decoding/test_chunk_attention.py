"""What the newest token looks at."""

from __future__ import annotations

import pytest
import torch
from conftest import each_decoding, make_focus_model, pad_rows, random_ids
from families import SEES_TABLES
from generating import make_pair


SIZES = {"chunk_size": 5, "local_size": 6, "prompt_size": 3}
# with soft-capping, sinks, latents, sliding windows, and keys of as many heads as queries
FAMILIES = ["llama", "gemma2", "gpt_oss", "deepseek_v3", "mistral", "olmo2", "gpt_neox", "opt"]
FAMILIES += ["gptj", "codegen"] if SEES_TABLES else []


@each_decoding
@pytest.mark.parametrize("family", FAMILIES)
def test_chunk_attention_is_what_eager_attention_returns(family: str, decoding: str) -> None:
    model, reference = make_pair(family, decoding=decoding, **SIZES)
    ids = random_ids(29)
    (found,) = model.chunk_attention(ids[None])
    expected = reference.start(ids).looked_at()
    assert found.shape == (5,)
    assert 0 < float(found.sum()) < 1
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=1e-9)


def test_chunk_attention_of_a_batch_and_of_a_memory_is_that_of_each_row() -> None:
    model = make_focus_model(**SIZES)
    rows = [random_ids(27, seed=1), random_ids(4, seed=2), random_ids(13, seed=3)]
    ids, mask = pad_rows(rows)
    together = model.chunk_attention(ids, attention_mask=mask)
    assert [len(shares) for shares in together] == [5, 0, 2]
    for row, shares in zip(rows, together):
        assert torch.equal(shares, model.chunk_attention(row[None])[0])
    memory = model.encode(rows[0][:20])
    held = model.chunk_attention(rows[0][None, 20:], memory=memory)[0]
    assert len(held) == 5  # four of the memory, one that the question spilled
    before = model.chunk_attention(rows[0][None], local_size=7)[0]
    torch.testing.assert_close(model.chunk_attention(rows[0][None, 20:], memory=memory, local_size=7)[0], before)


@pytest.mark.parametrize("family", ["bloom", *([] if SEES_TABLES else ["gptj", "codegen"])])
def test_a_model_whose_attention_cannot_be_seen_is_refused(family: str) -> None:
    model = make_focus_model(family)
    with pytest.raises(ValueError, match="`chunk_attention` needs to see"):
        model.chunk_attention(random_ids(29)[None])
