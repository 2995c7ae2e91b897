"""Passkey retrieval: five digits are hidden in a long text of no interest, and asked for at its end. As in the paper,
which says what the task is behind the noise; and in the order of Landmark Attention, where the task was first posed,
which says it before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..fields import SIZE
from .matching import first_integer_match
from .samples import NOISE, Draft, Request, Sample, Source, spread
from .task import FilledTask, Task


INFORMATION = "The pass key is {key}. Remember it. {key} is the pass key."
TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. I will quiz you "
    "about the important information there."
)
QUESTION = "What is the pass key? The pass key is"
DIGITS = 5
# Tokens that an answer may have: a space and five digits, each a token of its own, and some to spare
ANSWER_TOKENS = 8


@dataclass(frozen=True)
class PasskeyPrompt:
    """One prompt.

    Attributes:
        ids (`torch.LongTensor` of shape (1, tokens)): The prompt.
        key (`str`): The right answer.
    """

    ids: torch.Tensor
    key: str


def passkey_prompt(tokenizer: Any, tokens: int, depth: float, seed: int) -> PasskeyPrompt:
    """A prompt in the paper's words: noise, information, noise, task, question.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Its special tokens, if it adds any, count.
        tokens (`int`): The prompt has at most so many, and less than one sentence of noise fewer.
        depth (`float`): Where the information stands: 0 at the start, 1 at the end.
        seed (`int`): Chooses the key.

    Raises:
        ValueError: if `depth` is not from 0 to 1, or `tokens` has no room for information, task and question.
    """
    if not 0 <= depth <= 1:
        raise ValueError(f"`depth` must be a number from 0 (the start) to 1 (the end), got {depth!r}.")
    generator = torch.Generator().manual_seed(seed)
    key = str(int(torch.randint(10 ** (DIGITS - 1), 10**DIGITS, (), generator=generator)))

    def ids(sentences: int) -> list[int]:
        before = round(depth * sentences)
        text = [NOISE] * before + [INFORMATION.format(key=key)] + [NOISE] * (sentences - before) + [TASK, QUESTION]
        return tokenizer(" ".join(text), verbose=False)["input_ids"]

    least = len(ids(0))
    if least > tokens:
        raise ValueError(f"`tokens` is {tokens}, but information, task and question alone have {least}; give more.")
    sentence = max(1, (len(ids(20)) - least) // 20)
    sentences = (tokens - least) // sentence
    while len(ids(sentences)) > tokens:  # tokens join at the seams
        sentences -= 1
    return PasskeyPrompt(torch.tensor([ids(sentences)]), key)


@dataclass(frozen=True)
class PasskeyTask:
    """Accuracy of greedy answers, with keys at evenly spaced depths.

    Attributes:
        tokens (`int`): Tokens of a prompt. Defaults to 1024.
        samples (`int`): Prompts. Defaults to 10.
        seed (`int`): Chooses the keys. Defaults to 0.

    Example:

    ```python
    import focus_peft
    from focus_peft.tasks import PasskeyTask
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(name), "hub/smollm2-135m-instruct-focus")

    print(PasskeyTask(tokens=900, samples=2)(model, tokenizer))
    ```
    """

    tokens: int = 1024
    samples: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        SIZE.check("`samples`", self.samples)

    def check(self, model: Any, tokenizer: Any) -> None:
        """Raise a ValueError if no prompt can be made. `FocusTrainer` calls it before the first step."""
        if tokenizer is None:
            raise ValueError("there is no tokenizer to make prompts with; give the trainer `processing_class`.")
        passkey_prompt(tokenizer, self.tokens, 0.0, self.seed)

    def __call__(self, model: Any, tokenizer: Any) -> dict[str, float]:
        """{"accuracy": the share of prompts that are answered right}."""
        right = 0.0
        for number in range(self.samples):
            prompt = passkey_prompt(tokenizer, self.tokens, spread(number, self.samples), self.seed + number)
            ids = prompt.ids.to(model.device)
            with torch.no_grad():
                output = model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=ANSWER_TOKENS,
                    do_sample=False,
                    pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id or 0,
                )
            answer = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
            right += first_integer_match(answer, [prompt.key])
        return {"accuracy": right / self.samples}


@dataclass(frozen=True)
class Passkey(Task):
    """The same prompts, one at a time."""

    name: str = "passkey"
    new_tokens: int = ANSWER_TOKENS
    is_binary: bool = True

    measure = staticmethod(first_integer_match)

    def sample(self, source: Source, tokens: int, number: int, samples: int) -> Sample:
        depth = spread(number, samples)
        prompt = passkey_prompt(source.tokenizer, tokens - self.new_tokens, depth, source.seed + number)
        return Sample(prompt.ids[0].tolist(), (prompt.key,), depth)


@dataclass(frozen=True)
class LandmarkPasskey(FilledTask):
    """The prompts of Landmark Attention (Mohtashami and Jaggi, arXiv 2305.16300; github.com/epfml/landmark-attention,
    llama/run_test.py): task, noise, information, noise and question, each on a line of its own; noise is cut at any
    character.

    What differs: depths are evenly spaced, there they are random.
    """

    name: str = "passkey_landmark"
    new_tokens: int = 10
    is_binary: bool = True

    measure = staticmethod(first_integer_match)

    def draft(self, request: Request, characters: int) -> Draft:
        key = str(request.random(self.name).randint(1, 50000))
        noise = f"{NOISE} " * (characters // len(NOISE) + 1)
        before = round(request.depth * characters)
        hidden = [noise[:before], INFORMATION.format(key=key), noise[: characters - before]]
        text = "\n".join([TASK, *hidden, "What is the pass key?"])
        return Draft(text, " The pass key is", (key,), request.depth)
