"""Tasks that are answered in words: prompts have the published parts and the wanted length, and metrics the published
values.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections import Counter
from typing import Any

import pytest
import torch
from conftest import make_focus_model, make_tiny_tokenizer
from refusal import refusal
from small_package import PACKAGE

from focus_peft.tasks import TASKS, PasskeyTask, Sample, Source
from focus_peft.tasks.matching import first_integer_match, string_match_all, word_match
from focus_peft.tasks.passkey import INFORMATION, QUESTION, TASK, passkey_prompt
from focus_peft.tasks.ruler.needles import NIAH_TASKS
from focus_peft.tasks.samples import NOISE, Draft
from focus_peft.tasks.task import fill


TEXT = "Call me Ishmael. Some years ago I went to sea! Was it wise? It was. There were whales, and Mr. Ahab."
# of tasks that need others
TEXTS = {"cross_file_line": [PACKAGE]}
# bytes are tokens in these tests
TOKENS = 9000


def source(**fields: Any) -> Source:
    return Source(make_tiny_tokenizer(), **{"texts": [TEXT], **fields})


def text_of(sample: Sample) -> str:
    return make_tiny_tokenizer().decode(sample.ids)


@pytest.mark.parametrize("name", TASKS)
def test_prompts_leave_room_for_the_answer_and_little_more_and_hold_what_is_asked_for(name: str) -> None:
    task = TASKS[name]
    sample = task.sample(source(texts=TEXTS.get(name, [TEXT])), TOKENS, 1, 4)
    room = TOKENS - task.new_tokens - len(sample.ids)
    assert 0 <= room < 300, "less than a unit: a word that is listed 30 times, at most"
    text = text_of(sample)
    if name not in ("code_run", "cross_file_line"):  # whose answers have to be worked out
        assert all(reference in text for reference in sample.references)
    end = "\n" if name == "cross_file_line" else "."
    assert task.score(f" {', '.join(sample.references)}{end}", sample.references) == 1
    wrong = task.score(" I do not know.", sample.references)
    assert wrong < 0.5 if name == "cross_file_line" else wrong == 0  # some letters are alike


def test_numbers_are_found_by_their_rank() -> None:
    ranks = {"largest": -1, "second largest": -2, "third largest": -3}
    ranks |= {"smallest": 0, "second smallest": 1, "third smallest": 2}
    found: dict[str, list[float]] = {}
    for number in range(14):
        sample = TASKS["math_find"].sample(source(), 2000, number, 14)
        asked = re.fullmatch(r"What is the (.+) number in the following list\?\n\n(\[.+\])\n\n(.+)", text_of(sample))
        assert asked is not None
        kind, numbers = asked.group(1), json.loads(asked.group(2))
        end = f"You should answer with only one number, no other words. The {kind} number of the list is: "
        assert asked.group(3) == end and min(numbers) >= 0 and max(numbers) <= 99 and len(numbers) > 400
        answer = statistics.median(numbers) if kind == "median" else sorted(set(numbers))[ranks[kind]]
        assert sample.references == (str(answer),)
        found.setdefault(kind, []).append(answer)
    assert found.keys() == {*ranks, "median"} and all(len(answers) == 2 for answers in found.values())


@pytest.mark.parametrize("number", range(5))
def test_functions_return_what_python_returns_through_as_many_calls(number: int) -> None:
    sample = TASKS["code_run"].sample(source(), 3000, number, 5)
    text = text_of(sample)
    parts = re.fullmatch(
        r"There is a function called (func_\d+) in the following Python code\.\n\n\n"
        r"Here is the content of functions_module\.py:\n\n"
        r"(.+)\n\nPlease compute the exact value of (func_\d+\(-?\d+\))\. The value of (.+) is",
        text,
        re.DOTALL,
    )
    assert parts is not None
    name, code, call, again = parts.groups()
    assert call.startswith(f"{name}(") and call == again
    calls: list[int] = []
    functions: dict[str, Any] = {"calls": calls}
    exec(code.replace("    return", "    calls.append(x)\n    return"), functions)
    assert len(functions) > 50
    assert sample.references == (str(eval(call, functions)),)
    assert len(calls) == (2, 4, 6, 8, 10)[number]
    assert all(-12 <= int(sign + added) <= 17 for sign, added in re.findall(r"([+-]) (\d+)\n", code))


@pytest.mark.parametrize("name", TASKS)
def test_the_seed_and_the_number_choose_a_prompt_and_nothing_else_does(name: str) -> None:
    texts = TEXTS.get(name, [TEXT])
    first, again, other_seed, other_number = (
        TASKS[name].sample(source(seed=seed, texts=texts), TOKENS, number, 3)
        for seed, number in ((0, 1), (0, 1), (1, 1), (0, 2))
    )
    assert first == again
    # few places are asked for by BABILong, few numbers and lines by these: another prompt may have the same answer
    few = name.startswith("babilong") or name in ("math_find", "code_run", "cross_file_line")
    of = (lambda sample: sample.ids) if few else (lambda sample: sample.references)
    assert of(first) != of(other_seed) and of(first) != of(other_number)


@pytest.mark.parametrize(
    "name", ["passkey", "passkey_landmark", "infinitebench_passkey", "number_string", "kv_retrieval"]
)
def test_answers_stand_at_evenly_spaced_depths(name: str) -> None:
    for number in range(5):
        sample = TASKS[name].sample(source(), TOKENS, number, 5)
        assert sample.depth == number / 4
        text = text_of(sample)
        assert text.index(sample.references[0]) / len(text) == pytest.approx(number / 4, abs=0.07)


@pytest.mark.parametrize("task", NIAH_TASKS, ids=lambda task: task.name)
def test_needles_are_rulers(task: Any) -> None:
    sample = task.sample(source(), TOKENS, 0, 1)
    text = text_of(sample)
    kind = task.values
    found = re.findall(rf"One of the special magic {kind} for (\S+) is: (\S+)\.(?=\s)", text)
    per_key = Counter(key for key, _ in found)
    hidden = max(task.num_keys, task.num_queries) * task.num_values
    assert len(found) == hidden if task.haystack != "needle" else len(found) > 50
    one = len(sample.references) == 1
    assert one == task.is_binary
    shown = kind[:-1] if one else kind
    verb = "What is the" if one else "What are all the"
    asked = re.search(rf"{verb} special magic {shown} for (.+) mentioned in the provided text\?", text)
    assert asked is not None
    keys = re.split(r", and |, ", asked.group(1))
    assert len(keys) == task.num_queries
    answers = [value for wanted in keys for key, value in found if key == wanted]
    assert sorted(answers) == sorted(sample.references) and len(answers) == task.num_queries * task.num_values
    assert all(per_key[key] == task.num_values for key in keys)
    form = r"\d{7}" if kind == "numbers" else r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
    assert all(re.fullmatch(form, value) for value in answers)
    begin = "A special magic {} is hidden" if one else "Some special magic {} are hidden"
    assert text.startswith(begin.format(shown) + " within the following text. Make sure to memorize it.")
    verb = "is" if one else "are"
    end = f"The special magic {shown} for {asked.group(1)} mentioned in the provided text {verb}"
    assert text.endswith(f"mentioned in the provided text? {end}")
    if task.haystack == "essay":
        assert "Call me Ishmael. Some years ago" in re.sub(r" One of the special magic [^.]+\.", "", text)
    if task.haystack == "repeat":
        assert text.count("The grass is green.") > 50


def test_needles_stand_between_sentences() -> None:
    text = text_of(TASKS["niah_multikey_1"].sample(source(), TOKENS, 3, 4))
    for before in re.findall(r"(\S+) One of the special magic", text):
        assert before[-1] in ".!?" or before == "afterwards.\n"


def test_variables_of_one_chain_have_one_value() -> None:
    sample = TASKS["vt"].sample(source(), TOKENS, 0, 1)
    text = text_of(sample)
    example, _, rest = text.partition("\n\nMemorize and track")
    assert example.startswith(
        "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
    )
    values: dict[str, str] = {}
    for name, value in re.findall(r"VAR ([A-Z]{5}) = (?:VAR )?([A-Z]{5}|\d{5})", rest):
        values[name] = values.get(value, value)
    asked = re.search(r"Find all variables that are assigned the value (\d{5}) in the text above\.", rest)
    assert asked is not None
    assert tuple(name for name, value in values.items() if value == asked.group(1)) == sample.references
    assert len(sample.references) == 5
    assert rest.endswith(f"above, 5 variables are assigned the value {asked.group(1)}, they are: ")
    solved = re.search(r"they are:  ((?:[A-Z]{3} ?){5})$", example)
    assert solved is not None, "the example has its answer"
    for name in solved.group(1).split():
        assert f"VAR {name} = " in example


def test_common_words_are_the_most_common() -> None:
    for tokens, often, seldom in ((3000, 6, 1), (TOKENS, 30, 3)):
        sample = TASKS["cwe"].sample(source(), tokens, 0, 1)
        examples, _, rest = text_of(sample).rpartition("Below is a numbered list of words.")
        listed = re.findall(r"(\d+)\. ([a-z-]+)(?= |\n)", rest)
        assert [int(number) for number, _ in listed] == list(range(1, len(listed) + 1))
        counts = Counter(word for _, word in listed)
        assert {word for word, count in counts.items() if count == often} == set(sample.references)
        assert set(counts.values()) == {often, seldom} and len(sample.references) == 10
        assert len(re.findall(r"\d+\. [a-z-]+", examples.partition("in the list are:")[2])) == 10


def test_frequent_words_are_the_most_frequent_after_the_dots() -> None:
    sample = TASKS["fwe"].sample(source(), TOKENS, 0, 1)
    text = text_of(sample)
    coded = text[text.index("coded words. ") + 13 : text.index("\nQuestion:")].split(" ")
    ranked = Counter(coded).most_common()
    assert [word for word, _ in ranked[:4]] == ["...", *sample.references]
    words = round(ranked[0][1] * math.pi**2 / 6)
    for rank, (_, count) in enumerate(ranked[:6], 1):
        assert count == pytest.approx(words / rank**2 / (math.pi**2 / 6), abs=1.5)


def test_number_strings_have_ten_digits_and_five_neighbors_that_are_equal() -> None:
    for number in range(20):
        digits = TASKS["number_string"].sample(source(), 2000, number, 20).references[0]
        runs = [len(run.group()) for run in re.finditer(r"(\d)\1*", digits)]
        assert len(digits) == 10 and len(runs) <= 5


def test_key_value_pairs_are_json() -> None:
    sample = TASKS["kv_retrieval"].sample(source(), TOKENS, 2, 3)
    text = text_of(sample)
    pairs = json.loads(text[text.index("{") : text.index("}") + 1])
    key = re.search(r'Key: "(.+)"\nThe value associated with the specified key is: $', text)
    assert key is not None and pairs[key.group(1)] == sample.references[0]
    assert list(pairs)[-1] == key.group(1), "the last of three samples asks for the last pair"


def test_prompts_of_chats_are_in_the_template_and_the_answers_start_behind_it() -> None:
    sample = TASKS["niah_single_1"].sample(source(chat=True), TOKENS, 0, 1)
    text = text_of(sample)
    assert text.startswith("<s>user: A special magic number is hidden")
    assert re.search(r"in the provided text\?\nassistant: The special magic number for \S+ mentioned", text)
    assert TOKENS - 128 - 300 < len(sample.ids) <= TOKENS - 128


@pytest.mark.parametrize(
    ("prediction", "references", "share"),
    [
        (" 12345 and 678", ["12345", "678"], 1.0),
        ("only 678.", ["12345", "678"], 0.5),
        ("ABC", ["abc"], 1.0),
        ("1234", ["12345"], 0.0),
        ("x123456", ["12345"], 1.0),
        ("", ["a", "b", "c", "d"], 0.0),
        ("a, c and d", ["a", "c", "d", "zz"], 0.75),
    ],
)
def test_rulers_metric(prediction: str, references: list[str], share: float) -> None:
    assert string_match_all(prediction, references) == share


@pytest.mark.parametrize(
    ("prediction", "reference", "right"),
    [(" 71432.", "71432", 1), ("It is 71432, not 5", "71432", 1), ("5 or 71432", "71432", 0), ("714321", "71432", 0)]
    + [
        ("none", "71432", 0),
        ("0071", "0071", 1),
        ("71 432", "71432", 0),
        ("x71432", "71432", 1),
        (" 1 71432", "71432", 0),
    ],
)
def test_the_metric_of_passkeys_and_number_strings(prediction: str, reference: str, right: float) -> None:
    assert first_integer_match(prediction, [reference]) == right


@pytest.mark.parametrize(
    ("prediction", "right"),
    [('"ab-1"', 1), ("The value is: ab-1.", 1), ("ab-12", 0), ("ab 1", 0), ("{x}ab-1{y}", 1), ("", 0)],
)
def test_the_metric_of_key_value_retrieval(prediction: str, right: float) -> None:
    assert word_match(prediction, ["ab-1"]) == right


@pytest.mark.parametrize("unit", [1, 7, 40])
@pytest.mark.parametrize("limit", [90, 100, 171])
def test_prompts_are_filled_as_far_as_units_go(unit: int, limit: int) -> None:
    def build(units: int) -> Draft:
        return Draft("x" * 50 + "y" * unit * units, "", ("x",))

    assert len(fill(build, source(), limit).ids) == 50 + (limit - 50) // unit * unit


def test_what_cannot_be_made_is_refused() -> None:
    with refusal("`tokens`", "shortest"):
        TASKS["niah_single_1"].sample(source(), 300, 0, 1)
    with refusal("`texts`", "empty"):
        TASKS["niah_single_2"].sample(source(texts=[]), TOKENS, 0, 1)
    with refusal("`words`", "12"):
        TASKS["cwe"].sample(source(words=[f"word{number}" for number in range(12)]), TOKENS, 0, 1)


def test_long_lists_of_words_take_compounds() -> None:
    tokenizer = make_tiny_tokenizer()
    sample = TASKS["cwe"].sample(Source(tokenizer), 60_000, 0, 1)
    words = set(re.findall(r"\d+\. ([a-z-]+)", tokenizer.decode(sample.ids).rpartition("Below is")[2]))
    assert len(words) > 600 and any("-" in word for word in words)


# The passkey task


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
