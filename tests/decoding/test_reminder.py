"""A text that is read in chunks may be longer than the model; transformers' reminder is for others."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
from conftest import PAD, make_focus_model, make_tiny_model, random_ids


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
