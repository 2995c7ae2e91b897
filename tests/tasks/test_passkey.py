"""The passkey task: its prompts, and that it tells a right answer from a wrong one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import make_focus_model, make_tiny_tokenizer
from refusal import refusal

from focus_peft.tasks import TASKS, PasskeyTask, Source
from focus_peft.tasks.matching import first_integer_match
from focus_peft.tasks.passkey import INFORMATION, QUESTION, TASK, passkey_prompt
from focus_peft.tasks.samples import NOISE


@pytest.mark.parametrize("tokens", [400, 1000, 3001])
@pytest.mark.parametrize("depth", [0.0, 0.3, 1.0])
def test_prompts_have_the_wanted_length_and_hide_the_key_where_they_should(tokens: int, depth: float) -> None:
    tokenizer = make_tiny_tokenizer()
    prompt = passkey_prompt(tokenizer, tokens, depth, 5)
    assert tokens - len(NOISE) - 1 <= prompt.ids.shape[1] <= tokens
    text = tokenizer.decode(prompt.ids[0])
    assert text.endswith(QUESTION) and text.count(prompt.key) == 2 and len(prompt.key) == 5
    before, _, after = text.partition(f"The pass key is {prompt.key}. Remember it.")
    sentences = before.count(NOISE), after.count(NOISE)
    assert sentences[0] == round(depth * sum(sentences))


def test_the_parts_stand_in_the_papers_order() -> None:
    text = make_tiny_tokenizer().decode(passkey_prompt(make_tiny_tokenizer(), 1000, 0.5, 0).ids[0])
    places = [text.index("The grass is green."), text.index("Remember it."), text.rindex("There and back again.")]
    places += [text.index("There is an important info"), text.index("What is the pass key?")]
    assert places == sorted(places)


@pytest.mark.parametrize(("number", "tokens"), [(0, 700), (2, 3001), (4, 1234)])
def test_landmarks_parts_stand_in_its_order_on_lines_of_their_own(number: int, tokens: int) -> None:
    tokenizer = make_tiny_tokenizer()
    sample = TASKS["passkey_landmark"].sample(Source(tokenizer), tokens, number, 5)
    lines = tokenizer.decode(sample.ids).split("\n")
    endless = f"{NOISE} " * 100
    (key,) = sample.references
    assert [lines[0], lines[2], lines[4]] == [TASK, INFORMATION.format(key=key), QUESTION]
    assert endless.startswith(lines[1]) and endless.startswith(lines[3])
    noise = len(lines[1]) + len(lines[3])
    assert len(lines) == 5 and len(lines[1]) == round(number / 4 * noise) and 1 <= int(key) <= 50000
    assert tokens - 10 - max(1, tokens // 1000) <= len(sample.ids) <= tokens - 10


@pytest.mark.parametrize(
    ("answer", "right"),
    [(" 12345.", True), ("x12345", True), (" 123456", False), (" 1 12345", False), ("none", False)],
)
def test_the_first_number_of_an_answer_counts(answer: str, right: bool) -> None:
    assert first_integer_match(answer, ["12345"]) == right


@pytest.mark.parametrize(("given", "named"), [({"tokens": 100}, "`tokens`"), ({"depth": 1.5}, "`depth`")])
def test_prompts_that_cannot_be_are_refused(given: dict[str, Any], named: str) -> None:
    with refusal(named):
        passkey_prompt(make_tiny_tokenizer(), **{"tokens": 500, "depth": 0.5, "seed": 0, **given})


class Oracle:
    """Copies a stretch of its input: the key, if `knows`."""

    device = torch.device("cpu")

    def __init__(self, tokenizer: Any, knows: bool) -> None:
        self.tokenizer, self.knows = tokenizer, knows

    def generate(self, input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        text = self.tokenizer.decode(input_ids[0])
        at = text.index("The pass key is ") + len("The pass key is ")
        answer = text[at : at + 5] if self.knows else "the grass"
        return torch.cat([input_ids, self.tokenizer(f" {answer}", return_tensors="pt").input_ids], dim=1)


def test_accuracy_is_the_share_of_right_answers() -> None:
    tokenizer = make_tiny_tokenizer()
    task = PasskeyTask(tokens=400, samples=3)
    assert task(Oracle(tokenizer, True), tokenizer) == {"accuracy": 1.0}
    assert task(Oracle(tokenizer, False), tokenizer) == {"accuracy": 0.0}


def test_a_focus_model_is_asked_beyond_its_window() -> None:
    model = make_focus_model(base={"vocab_size": 260, "max_position_embeddings": 256}, chunk_size=32, local_size=32)
    assert PasskeyTask(tokens=400, samples=1)(model, make_tiny_tokenizer())["accuracy"] in (0.0, 1.0)


def test_a_task_without_samples_is_refused() -> None:
    with refusal("`samples`"):
        PasskeyTask(samples=0)
