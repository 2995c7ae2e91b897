"""Cache compression: the base model reads everything once, and answers from the keys and values that a press keeps."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from ...fields import SIZE
from ...frozen.compat import CACHE
from .base import greedy, token_losses
from .full_attention import FullAttention


PACKAGE = "kvpress"
# "kvpress:SnapKV@0.5"; a press around another one stands before it: "kvpress:AdaKV:SnapKV@0.5"
NAME = re.compile(r"kvpress:(\w+(?::\w+)*)@(\d*\.?\d+)")


class PressedCache(FullAttention):
    """Compression of the cache by a press of kvpress (Devoto et al., arXiv 2510.00636): the base model reads the
    prompt with full attention, the press leaves some keys and values of each layer out, and the answer is decoded
    greedily behind the others.

    Args:
        model (`PeftModel`): Its base model must be one that kvpress knows.
        press (`kvpress.BasePress`): The press, as `press_named` makes it.
        question_size (`int`): Tokens at the end of a prompt that are read behind the compressed cache, and that the
            press neither sees nor leaves out. Defaults to 1: the press sees the question.
    """

    def __init__(self, model: Any, press: Any, question_size: int = 1) -> None:
        super().__init__(model)
        known = import_module(PACKAGE).SUPPORTED_MODELS
        if not isinstance(self.base, known):
            raise ValueError(
                f"`model` is a {type(self.base).__name__}, whose cache kvpress does not compress; it knows "
                f"{', '.join(each.__name__ for each in known)}. Leave out its presses."
            )
        SIZE.check("`question_size`", question_size)
        self.press, self.question_size = press, question_size

    def answer(self, ids: list[int], new_tokens: int) -> list[int]:
        question = min(self.question_size, len(ids))
        with self._behind(ids[: len(ids) - question]) as read:
            return greedy(self.base, read(ids[len(ids) - question :]), read, new_tokens)

    def label_losses(self, ids: list[int], labels: int) -> torch.Tensor:
        first = len(ids) - labels
        question = min(self.question_size, first)
        with self._behind(ids[: first - question]) as read:
            logits = [read(ids[first - question : first])]
            logits += [read([token]) for token in ids[first:-1]]
        return token_losses(torch.stack(logits), ids[first:])

    @contextlib.contextmanager
    def _behind(self, context: list[int]) -> Iterator[Any]:
        """Read a text, compress it, and give what reads tokens behind it: their last one's logits (vocabulary,)."""
        cache: Any = DynamicCache()
        with _as_it_was(self.base):
            if context:
                with self.press(self.base):
                    self.base.base_model(input_ids=self._tensor(context), use_cache=True, **{CACHE: cache})
            position = cache.get_seq_length() if self._moves() else len(context)

            def read(ids: list[int]) -> torch.Tensor:
                nonlocal position
                positions = torch.arange(position, position + len(ids), device=self.base.device)[None]
                position += len(ids)
                options = {"position_ids": positions, "use_cache": True, "logits_to_keep": 1, CACHE: cache}
                return self.base(input_ids=self._tensor(ids), **options).logits[0, -1]

            yield read

    def _moves(self) -> bool:
        """Whether the press gives what it keeps new positions, one behind the other."""
        presses = import_module(PACKAGE)
        moving = (presses.KeyRerotationPress, presses.RestoreKVPress)
        return isinstance(self.press, moving) or getattr(self.press, "rerotate_keys", False)


@contextlib.contextmanager
def _as_it_was(model: Any) -> Iterator[None]:
    """Within the context, presses may leave what they like on modules: masks of heads, rotary tables, a `forward`."""
    before = [(module, {**vars(module), "_modules": dict(module._modules)}) for module in model.modules()]
    try:
        yield
    finally:
        for module, values in before:
            vars(module).clear()
            vars(module).update(values)


def press_named(name: str) -> Any:
    """The press that "kvpress:CLASS@RATIO" names: a class of kvpress without its suffix `Press`, and the share of keys
    and values that it leaves out.

    Raises:
        ValueError: if there is none, or kvpress is not installed.
    """
    match = NAME.fullmatch(name)
    if match is None or float(match[2]) >= 1:
        raise ValueError(
            f"`methods` names {name!r}, but a press is named by its class in kvpress and the share of keys and values "
            "that it leaves out, from 0 to below 1, such as 'kvpress:SnapKV@0.5'."
        )
    if find_spec(PACKAGE) is None:
        raise ValueError(
            f"`methods` names {name!r}, but the package kvpress is not installed. It needs transformers below 5.3, so "
            "an environment of its own: `make test-kvpress` makes `.venv-kvpress` (docs/evaluation.md)."
        )
    presses = import_module(PACKAGE)
    known = {each.removesuffix("Press") for each in presses.__all__ if each.endswith("Press")}
    press = None
    for word in reversed(match[1].split(":")):
        if word not in known:
            raise ValueError(
                f"`methods` names {name!r}, but kvpress has no {word!r}; it has {', '.join(sorted(known))}."
            )
        make = getattr(presses, f"{word}Press")
        ratios = [each for each in signature(make).parameters if each.endswith("compression_ratio")]
        try:
            press = make(**({ratios[0]: float(match[2])} if press is None and ratios else {"press": press}))
        except (AssertionError, TypeError) as error:
            raise ValueError(
                f"`methods` names {name!r}, but kvpress makes no {word}Press of that: {error}. Some presses stand "
                "around another one, as in 'kvpress:AdaKV:SnapKV@0.5'."
            ) from error
    return press
