"""The key tokens of LongPPL in an evaluation's texts: those of the base model, or of another evaluator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lib.base_model import ModelArguments, load_model

from focus_peft.frozen.fingerprint import Fingerprint
from focus_peft.tasks.longppl import KeyTokens, LongPerplexityTask


class KeyTokenFinder:
    """Finds key tokens.

    Args:
        base (`PreTrainedModel`): The adapter's base model: the evaluator, if no other is given.
        arguments (`ModelArguments`, *optional*): Another one. Texts are tokenized for it, and what counts are tokens
            that lie within its key tokens' characters.
        **thresholds: Fields of `KeyTokens`.
    """

    def __init__(self, base: Any, arguments: ModelArguments | None, **thresholds: Any) -> None:
        self.tokenizer: Any = None
        if arguments is not None:
            base, self.tokenizer = load_model(arguments)
            base.eval()
        self.find = KeyTokens(base, **thresholds)
        self._offsets: dict[int, list[tuple[int, int]]] = {}  # of the documents' tokens in their characters

    @property
    def identity(self) -> dict[str, str]:
        return Fingerprint.of(self.find.model).to_dict()

    def refusal(self, tokens: int) -> str | None:
        """Why a text cannot be read, if that is known before it is tokenized for the evaluator."""
        return self.find.refusal(tokens) if self.tokenizer is None else None

    def __call__(
        self, task: LongPerplexityTask, number: int, documents: list[list[int]], texts: list[str], tokenizer: Any
    ) -> list[int]:
        """Places of the key tokens in a task's text.

        Args:
            task (`LongPerplexityTask`): Chooses the text.
            number (`int`): Which of its texts.
            documents (`list[list[int]]`): All documents in tokens.
            texts (`list[str]`): The same in words.
            tokenizer (`PreTrainedTokenizerBase`): That of the model that is evaluated.

        Raises:
            ValueError: if the evaluator cannot read it.
        """
        window = task.windows(documents)[number]
        if self.tokenizer is None:
            return self.find(window.ids(documents, task.tokens))
        text = texts[window.document]
        if window.document not in self._offsets:
            whole = tokenizer(text, verbose=False, add_special_tokens=False, return_offsets_mapping=True)
            self._offsets[window.document] = whole["offset_mapping"]
        offsets = self._offsets[window.document][window.end - task.tokens : window.end]
        first, last = offsets[0][0], offsets[-1][1]
        read = self.tokenizer(text[first:last], verbose=False, add_special_tokens=False, return_offsets_mapping=True)
        spans = [read["offset_mapping"][key] for key in self.find(read["input_ids"])]
        found = covered([(start - first, end - first) for start, end in offsets], spans)
        return [place for place in found if place >= task.short]


def covered(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[int]:
    """Tokens that lie within spans of key tokens of another tokenizer, as in the released code: neighboring spans are
    one.

    Args:
        offsets: First character of every token, and the one behind its last.
        spans: Those of the evaluator's key tokens, in order.
    """
    merged: list[tuple[int, int]] = []
    for start, end in spans:
        if merged and merged[-1][1] == start:
            start = merged.pop()[0]
        merged.append((start, end))
    found, number = [], 0
    for place, (start, end) in enumerate(offsets):
        while number < len(merged) and merged[number][1] < end:
            number += 1
        if number < len(merged) and merged[number][0] <= start < end:
            found.append(place)
    return found
