"""What clients send: OpenAI's requests, as far as they are understood, and a document to ask about."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..fields import names
from .errors import ApiError


# What requests of OpenAI may have, and this server does not do
REFUSED = {
    "tools": "calls no tools",
    "tool_choice": "calls no tools",
    "functions": "calls no functions",
    "function_call": "calls no functions",
    "response_format": "holds answers to no format",
    "logit_bias": "takes no biases of logits",
    "audio": "writes text only",
    "web_search_options": "does not search",
    "best_of": "returns every answer that it makes; use `n`",
    "suffix": "writes on at the end only",
    "echo": "returns answers without their prompts",
    "reasoning_effort": "does not think before it answers",
}
# What it takes and has no use for
HARMLESS = names("user metadata store service_tier parallel_tool_calls safety_identifier prompt_cache_key")


class Sampling(BaseModel):
    """How an answer is generated.

    Attributes:
        model (`str`): The server's.
        document (`str`, *optional*): The id of a file, which stands before the prompt.
        file_ids (`list[str]`, *optional*): The same as a list of one.
        read_chunks (`int`, *optional*): As in `FocusConfig`. 0: none.
        others: OpenAI's. A `temperature` of None is what the model's generation config says.
    """

    model_config = ConfigDict(extra="allow")

    model: str
    document: str | None = None
    file_ids: list[str] | None = Field(default=None, max_length=1)
    read_chunks: int | None = Field(default=None, ge=0)
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    n: int = Field(default=1, ge=1, le=16)
    stop: list[str] = Field(default_factory=list, max_length=16)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        """A null of JSON is a field that was left out, as OpenAI has it."""
        return (
            {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else given
        )

    @field_validator("stop", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, value: list[str]) -> list[str]:
        if "" in value:
            raise ValueError("an empty text would end every answer at once")
        return value

    @property
    def document_id(self) -> str | None:
        if self.document is not None and self.file_ids:
            raise ApiError(400, "`document` and `file_ids` both name a file; give one of them.", "document")
        return self.file_ids[0] if self.file_ids else self.document

    @property
    def most_tokens(self) -> int | None:
        return self.max_tokens

    @property
    def top_logprobs_wanted(self) -> int | None:
        """How many alternatives are wanted beside the log-probability of each token. None: not even that."""
        raise NotImplementedError

    @property
    def usage_wanted(self) -> bool:
        """Whether a stream ends with what was used."""
        return bool((self.stream_options or {}).get("include_usage"))

    def check(self, name: str) -> None:
        """Raise an ApiError for another model, or for what would silently not be done."""
        if self.model != name:
            raise ApiError(
                404, f"`model` is {self.model!r}, but this server has {name!r} only.", "model", "model_not_found"
            )
        for field, value in (self.model_extra or {}).items():
            if field in HARMLESS or value in ([], {}, False):
                continue
            what = REFUSED.get(field, "does not know this field")
            raise ApiError(400, f"`{field}` was given, but this server {what}; leave it out.", field)


class ChatRequest(Sampling):
    """A request for `/v1/chat/completions`."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)

    @property
    def most_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def top_logprobs_wanted(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    def texts(self) -> list[dict[str, str]]:
        """The messages, each with a role and one text."""
        found = []
        for number, message in enumerate(self.messages):
            role, content = message.get("role"), message.get("content")
            if isinstance(content, list):
                if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
                    raise ApiError(
                        400,
                        f"`messages[{number}]` has a part that is no text; this server reads text only.",
                        "messages",
                    )
                content = "".join(str(part.get("text", "")) for part in content)
            if role not in ("system", "developer", "user", "assistant") or not isinstance(content, str):
                raise ApiError(
                    400,
                    f"`messages[{number}]` has the role {role!r} and {type(content).__name__} as content; give a "
                    "system, user or assistant message with a text.",
                    "messages",
                )
            found.append({"role": "system" if role == "developer" else role, "content": content})
        return found


class CompletionRequest(Sampling):
    """A request for `/v1/completions`."""

    prompt: str | list[int]
    logprobs: int | None = Field(default=None, ge=0, le=20)

    @property
    def top_logprobs_wanted(self) -> int | None:
        return self.logprobs
