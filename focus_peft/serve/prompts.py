"""Prompts as tokens, and how the model's own generation config answers where a request does not say."""

from __future__ import annotations

from typing import Any

from .errors import ApiError
from .requests import Sampling
from .row import Sampled
from .settings import ServerSettings


class Prompts:
    """Makes prompts.

    Args:
        model (`PeftModel`): With the adapter.
        tokenizer: The model's.
        settings (`ServerSettings`): Limits.
    """

    def __init__(self, model: Any, tokenizer: Any, settings: ServerSettings) -> None:
        self.tokenizer, self.settings = tokenizer, settings
        self.own = model.get_base_model().generation_config
        self.vocabulary = model.base_model.facts.vocab_size

    def of_chat(self, messages: list[dict[str, str]]) -> list[int]:
        """A conversation, as the model's chat template writes it, up to where the answer begins."""
        if not self.tokenizer.chat_template:
            raise ApiError(
                400, f"{self.settings.name!r} has no chat template; ask it at `/v1/completions`.", "messages"
            )
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # templates raise what they like
            raise ApiError(400, f"`messages` does not fit the chat template: {error}.", "messages") from error
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def of_text(self, prompt: str | list[int], begins: bool) -> list[int]:
        """A text, or its tokens; with the tokenizer's special tokens, if nothing stands before it."""
        if isinstance(prompt, list):
            if not all(0 <= token < self.vocabulary for token in prompt):
                raise ApiError(400, f"`prompt` has a token outside the vocabulary of {self.vocabulary}.", "prompt")
            return prompt
        return list(self.tokenizer(prompt, add_special_tokens=begins, verbose=False)["input_ids"])

    def check(self, ids: list[int], request: Sampling) -> None:
        """Raise an ApiError for a prompt that is too short or too long, or an answer that is too long."""
        if not ids:
            raise ApiError(400, "The prompt is empty; give some text.", "prompt")
        if len(ids) > self.settings.max_prompt_tokens:
            raise ApiError(
                400,
                f"The prompt has {len(ids)} tokens, and this server takes {self.settings.max_prompt_tokens}; upload "
                "documents as files, or send less.",
                code="context_length_exceeded",
            )
        if (request.most_tokens or 0) > self.settings.max_tokens:
            raise ApiError(
                400,
                f"`max_tokens` (or `max_completion_tokens`) is {request.most_tokens}, and this server writes "
                f"{self.settings.max_tokens} tokens at most; ask for fewer.",
                "max_tokens",
            )

    def sampled(self, request: Sampling, seed: int) -> Sampled:
        """How the tokens of an answer are chosen."""
        own_temperature = (self.own.temperature or 1.0) if self.own.do_sample else 0.0
        own_top_p = (self.own.top_p or 1.0) if self.own.do_sample else 1.0
        return Sampled(
            own_temperature if request.temperature is None else request.temperature,
            own_top_p if request.top_p is None else request.top_p,
            seed,
            request.presence_penalty,
            request.frequency_penalty,
            request.top_logprobs_wanted,
        )
