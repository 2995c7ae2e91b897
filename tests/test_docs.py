"""README and docs are true: their Python runs, their commands and links are there, and they say what the package says.

The Python blocks of a page run in order, in one namespace, in a folder that looks like a clone: under the names of
SmolLM2 and its adapter it has a tiny Llama and a tiny adapter, which `from_pretrained` takes as it takes any local
folder. Nothing else stands in for anything.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import shlex
import socket
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import config_table
import pytest
import test_families
import torch
from conftest import ROOT, make_focus_model, save_base
from families import FAMILIES
from models_table import BEGIN, CHECKS, END, SIGNS, read_table

from focus_peft.config import READING_FIELDS


PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
ELSEWHERE = ("publishing.md", "serving.md")
FENCE = re.compile(r"^( *)```([a-z]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MODEL, ADAPTER = "HuggingFaceTB/SmolLM2-135M-Instruct", "hub/smollm2-135m-instruct-focus"
SIZES = {"chunk_size": 64, "local_size": 64, "prompt_size": 16}
# What takes long, or much room, is asked for less of
SHORTER = (
    ("max_steps=1000", "max_steps=2"),
    ("tokens=16384", "tokens=2000"),
    ("_000]", "0]"),
    ("_000:", "0:"),
    ("r=64", "r=2"),
)
MODELS = ROOT / "docs" / "models.md"


def test_the_table_of_fields_is_what_the_configuration_declares() -> None:
    page = config_table.PAGE.read_text(encoding="utf-8")
    assert config_table.written(page) == page, "run `make config-table`"


def test_the_table_of_models_has_the_families_and_checks_of_the_matrix() -> None:
    families, checks = read_table(MODELS.read_text(encoding="utf-8"))
    assert families == list(FAMILIES), "run `make models-table`"
    assert checks == list(CHECKS.values()), "run `make models-table`"


def test_every_check_of_the_matrix_has_a_column() -> None:
    tests = [name for name in vars(test_families) if name.startswith("test_")]
    over_families = [name for name in tests if "family" in test_families.__dict__[name].__code__.co_varnames]
    assert over_families == list(CHECKS)


def test_every_cell_of_the_table_has_an_outcome_and_every_note_is_there() -> None:
    table = MODELS.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    notes = set(re.findall(r"^(\d+)\. ", table, re.MULTILINE))
    for row in rows:
        for cell in row.split("|")[3:-1]:
            assert cell.split()[0] in SIGNS, row
            assert set(re.findall(r"<sup>(\d+)</sup>", cell)) <= notes, row


def test_the_lowest_versions_that_are_tested_are_those_that_the_package_admits() -> None:
    admitted = re.findall(r'"(peft|transformers)>=([\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    pinned = re.findall(r"^(peft|transformers)==([\d.]+)$", (ROOT / "tests" / "lowest.txt").read_text(), re.MULTILINE)
    assert len(admitted) == 2
    assert {name: version.removesuffix(".0") for name, version in pinned} == dict(admitted)


def blocks(text: str, *languages: str) -> list[str]:
    """The fenced blocks of a text in one of the languages; "" is a fence that names none."""
    return [textwrap.dedent(block) for _, language, block in FENCE.findall(text) if language in languages]


def run(code: str, namespace: dict[str, Any], where: str) -> None:
    for long, short in SHORTER:
        code = code.replace(long, short)
    exec(compile(code, where, "exec"), namespace)


@pytest.fixture(scope="session")
def _clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clone")
    base = {"vocab_size": 259, "max_position_embeddings": 512}
    save_base(folder / MODEL, dtype=torch.float32, max_position_embeddings=512)
    make_focus_model("llama", torch.float32, base, r=2, **SIZES).save_pretrained(folder / ADAPTER)
    prose = "It was the best of times, it was the worst of times, it was the age of wisdom. " * 6
    (folder / "book.txt").write_text(prose)
    (folder / "README.md").write_text(prose)
    (folder / "texts").mkdir()
    for number in range(40):
        (folder / "texts" / f"{number}.md").write_text(f"{number} {prose}")
    return folder


@pytest.fixture
def clone(_clone: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A folder like a clone of this repository, to run in. What ran before left nothing there."""
    for entry in _clone.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def join_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torchrun tells a process."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "localhost", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize(
    "page",
    # those run in tests/hub and tests/serve, where there is a Hub, or a server
    [page for page in PAGES if blocks(page.read_text(), "python", "py") and page.name not in ELSEWHERE],
    ids=lambda page: page.name,
)
def test_the_python_of_a_page_runs(page: Path, clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page.name in ("training.md", "data.md"):
        pytest.importorskip("datasets")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, block in enumerate(blocks(page.read_text(), "python", "py")):
        if "init_process_group" in block:  # for torchrun; here it is a group of one process
            join_alone(monkeypatch)
        run(block, namespace, f"{page.name}, block {number}")


def test_the_cells_of_the_tour_run(clone: Path) -> None:
    pytest.importorskip("datasets")
    cells = json.loads((ROOT / "docs" / "tour.ipynb").read_text())["cells"]
    namespace: dict[str, Any] = {"__name__": "__main__"}
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 4
    for number, cell in enumerate(code):
        run(cell, namespace, f"tour.ipynb, cell {number}")


PUBLIC = {
    "focus_peft": ["FocusConfig", "FocusModel", "FocusOutput", "Memory"],
    "focus_peft.trainer": ["FocusTrainer"],
    "focus_peft.training_args": ["FocusTrainingArguments"],
    "focus_peft.sft": ["FocusSFTTrainer"],
    "focus_peft.data": ["DataConfig"],
    "focus_peft.tasks": ["PasskeyTask"],
    "focus_peft.results": ["Result"],
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of TRL
@pytest.mark.parametrize("module, name", [(module, name) for module, names in PUBLIC.items() for name in names])
def test_the_example_of_a_public_class_runs(module: str, name: str, clone: Path) -> None:
    for needed in {
        "focus_peft.sft": ["trl", "datasets"],
        "focus_peft.trainer": ["datasets"],
        "focus_peft.data": ["datasets"],
    }.get(module, []):
        pytest.importorskip(needed)
    documented = getattr(importlib.import_module(module), name)
    examples = blocks(inspect.getdoc(documented) or "", "python")
    assert examples, f"{name} has no example"
    for example in examples:
        run(example, {"__name__": "__main__"}, name)


def test_readme_is_short() -> None:
    assert (ROOT / "README.md").stat().st_size <= 8192


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every line in the page's shell blocks."""
    for block in blocks(page.read_text(), "", "bash", "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and ("=" in words[0] and not words[0].startswith("-")):
                words.pop(0)  # VARIABLE=value
            if words:
                yield words


def options_of(files: Iterable[Path]) -> set[str]:
    """Options that scripts take: spelled out, or made of a quoted name."""
    source = "".join(file.read_text() for file in files)
    named = {"--" + name.replace("_", "-") for name in re.findall(r"[\"\']([a-z][a-z_-]*)[\"\']", source)}
    return named | set(re.findall(r"--[a-z][a-z-]*", source))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_exist(page: Path) -> None:
    """Targets of make, scripts, files of configurations, and options of our own commands."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    reading = {f"--{name.replace('_', '-')}" for name in READING_FIELDS}
    ours = options_of((ROOT / "recipes").rglob("*.py")) | reading
    cli = options_of((ROOT / "focus_peft" / "cli").glob("*.py")) | reading
    for words in commands(page):
        line = " ".join(words)
        if words[0] == "make":
            for word in words[1:]:
                assert word in targets or "=" in word, f"make has no target {word!r}: {line}"
        for word in words:
            if (
                re.fullmatch(r"(\.venv/bin/)?(recipes|tests|docs|hub)/[\w/.-]+\.(py|yaml|json|svg)", word)
                and "mine" not in word
            ):
                assert (ROOT / word).is_file() or words[0] == "focus-peft" or "--output" in words, (
                    f"{word} is not there: {line}"
                )
        script = next((word for word in words if word.startswith("recipes/") and word.endswith(".py")), None)
        known = cli if words[0] == "focus-peft" else ours if script else None
        if known is not None:
            after = words[words.index(script) :] if script else words
            for word in after:
                option = word.partition("=")[0]
                assert not re.fullmatch(r"--[a-z][a-z-]*", option) or option in known, f"{option} is no option: {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            heads = re.findall(r"^#+ (.*)$", FENCE.sub("", file.read_text()), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in slugs, f"{page.name} links to {target}"


BRITISH = (
    r"\b\w*(colour|behaviour|neighbour|licence|labelled|learnt|tokenis|initialis|minimis|optimis|quantis|normalis)\w*"
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_in_american_spelling(page: Path) -> None:
    found = [match.group() for match in re.finditer(BRITISH, FENCE.sub("", page.read_text()), re.IGNORECASE)]
    assert not found


def test_workflows_call_targets_of_make() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = [name for file in WORKFLOWS for name in re.findall(r"\bmake ([a-z-]+)", file.read_text())]
    assert called and set(called) <= targets
