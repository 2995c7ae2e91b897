"""Code across files: what is asked for, what stands before it, and how a line is scored."""

from __future__ import annotations

from conftest import make_tiny_tokenizer
from refusal import refusal
from small_package import FILES, PACKAGE

from focus_peft.tasks import TASKS, Source
from focus_peft.tasks.code.uses import HEADER, Use, file_text, files_of, uses_of


TASK = TASKS["cross_file_line"]
TOKENS = 9000  # bytes
ANSWERS = ("hunter = Ship(name, masts=2)", "throw_spear(whale, strength=whale + 1)")


def text_of(number: int, samples: int = 2, seed: int = 0, texts: tuple[str, ...] = ("No code.", PACKAGE)) -> str:
    source = Source(make_tiny_tokenizer(), seed, texts)
    return str(make_tiny_tokenizer().decode(TASK.sample(source, TOKENS, number, samples).ids))


def test_files_of_a_text() -> None:
    files = files_of(PACKAGE)
    assert list(files) == list(FILES)
    assert {path: code.rstrip() for path, code in files.items()} == {p: code.rstrip() for p, code in FILES.items()}
    assert files_of("A book.\n# Path: of no file\n") == {}


def test_uses_are_first_calls_of_imported_names_on_a_line_of_their_own() -> None:
    # that of spears.py stands on three lines, and what `__init__` imports it does not call
    assert uses_of(FILES) == [
        Use("sea/whales.py", 6, "sea/ships.py", ANSWERS[0]),
        Use("sea/whales.py", 8, "sea/tools/spears.py", ANSWERS[1]),
    ]
    again = {**FILES, "sea/whales.py": "from .ships import Ship\n\nBoat = Ship\nboat = Ship('Pequod', masts=3)\n"}
    assert uses_of(again) == []
    # a form feed ends no line of Python
    feed = {**FILES, "sea/whales.py": "from .ships import Ship\n\f\nboat = Ship('Pequod', masts=3)\n"}
    assert uses_of(feed) == [Use("sea/whales.py", 2, "sea/ships.py", "boat = Ship('Pequod', masts=3)")]
    comment = {**FILES, "sea/whales.py": "from .ships import Ship\n\nboat = Ship('Pequod')  # three masts\n"}
    assert uses_of(comment) == []


def test_a_prompt_has_the_definition_before_other_files_and_ends_where_the_line_belongs() -> None:
    seen = set()
    for seed in range(8):
        text = text_of(1, seed=seed)
        answer = next(answer for answer in ANSWERS if answer not in text)
        seen.add(answer)
        defined_in, end = {
            ANSWERS[0]: ("sea/ships.py", 'def hunt(name):\n    """Hunt."""\n'),
            ANSWERS[1]: ("sea/tools/spears.py", "    for whale in range(9):\n"),
        }[answer]
        assert text.endswith(end)
        defining = f"{HEADER.format(path=defined_in)}{FILES[defined_in]}"
        assert text.count(defining) == 1
        behind = text[text.index(defining) + len(defining) :]
        assert len(behind) > TOKENS / 4 and behind.count("# Path: ") > 3
    assert seen == set(ANSWERS)


def test_the_depth_is_where_the_definition_stands() -> None:
    source = Source(make_tiny_tokenizer(), 0, [PACKAGE])
    depths = [TASK.sample(source, TOKENS, number, 5).depth or 0 for number in range(5)]
    assert depths[0] == 0 and depths == sorted(depths) and 0.3 < depths[-1] < 0.5


def test_every_line_of_a_file_that_was_parted_stands_behind_its_path() -> None:
    for number in range(5):
        text = text_of(number, 5)
        assert text.startswith("# Path: ")
        for part in text.split("# Path: ")[1:]:
            path, _, code = part.partition("\n")
            assert all(line in FILES[path] for line in code.splitlines()), path


def test_files_that_tell_the_answer_are_left_out() -> None:
    told = {**FILES, "sea/told.py": "\n".join(ANSWERS)}
    text = "".join(file_text(path, code) for path, code in told.items())
    for number in range(4):
        assert "sea/told.py" not in text_of(number, texts=(text,))
    docs = {**FILES, "sea/ships.py": f'{FILES["sea/ships.py"]}"""{ANSWERS[0]}"""\n'}
    text = "".join(file_text(path, code) for path, code in docs.items())
    for seed in range(6):
        assert text_of(0, seed=seed, texts=(text,)).endswith("    for whale in range(9):\n")


def test_lines_that_several_files_have_are_not_asked_for() -> None:
    twice = {**FILES, "sea/again.py": f"from .ships import Ship\n\n{ANSWERS[0]}\n"}
    text = "".join(file_text(path, code) for path, code in twice.items())
    for seed in range(6):
        assert text_of(0, seed=seed, texts=(text,)).endswith("    for whale in range(9):\n")


def test_a_line_is_scored_by_how_much_of_it_is_there() -> None:
    reference = [ANSWERS[0]]
    assert TASK.score(f"\n    {ANSWERS[0]}\n    return\n", reference) == 1
    assert TASK.is_exact(f"    hunter =  Ship(name, masts=2)\n{'x' * 9}", reference)
    assert TASK.is_exact(f"    # who hunts\n\n    {ANSWERS[0]}\n", reference)  # comments do not count
    assert not TASK.is_exact("    # who hunts\n", reference) and TASK.score(f"# {ANSWERS[0]}", reference) > 0.9
    half = TASK.score("    hunter = Ship(name)\n", reference)
    assert half == 2 * len("hunter = Ship(name)") / (len("hunter = Ship(name)") + len(ANSWERS[0]))
    assert not TASK.is_exact("    hunter = Ship(name)\n", reference)
    assert TASK.score("", reference) == 0 and not TASK.is_exact("", reference)


def test_texts_without_such_lines_or_with_too_few_others_are_refused() -> None:
    with refusal("`texts`", "no Python package", "recipes/source_texts.py"):
        text_of(0, texts=("A book.",))
    few = "".join(f"{HEADER.format(path=path)}{FILES[path]}\n" for path in list(FILES)[:4])
    with refusal("`texts`", "too few files", f"{TOKENS:,}", "more packages"):
        text_of(0, texts=(few,))
