"""The command `focus-peft generate`, from the outside: what it prints where, and how it ends."""

from __future__ import annotations

import argparse
import io
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_tiny_model, make_tiny_tokenizer, perturb_twins, save_base
from peft import LoraConfig, PeftModel, get_peft_model

from focus_peft import FocusConfig
from focus_peft.cli import publish
from focus_peft.cli.console import naming_options
from focus_peft.cli.main import build_parser, main
from focus_peft.cli.reading_options import add_reading_options, reading_options
from focus_peft.config import READING_FIELDS
from focus_peft.hub import weights


TEXT = "The quick brown fox jumps over the lazy dog. " * 4
SIZES = {"chunk_size": 24, "local_size": 24, "prompt_size": 8}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with its tokenizer, saved."""
    directory = tmp_path_factory.mktemp("model")
    save_base(directory, dtype=torch.float32, max_position_embeddings=256)
    return directory


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter for the tiny model, whose twins differ from the frozen projections."""
    directory = tmp_path_factory.mktemp("adapter")
    base = make_tiny_model(dtype=torch.float32, vocab_size=len(make_tiny_tokenizer()), max_position_embeddings=256)
    adapted = get_peft_model(base, FocusConfig(r=2, **SIZES))
    perturb_twins(adapted)
    adapted.save_pretrained(directory)
    return directory


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "document.txt"
    path.write_text(TEXT)
    return path


Ended = tuple[int, str, str]  # exit code, stdout, stderr
Generate = Callable[..., Ended]


@pytest.fixture
def generate(model: Path, document: Path, capfd: pytest.CaptureFixture[str]) -> Generate:
    """The command with the tiny model, the document and a question, unless told otherwise."""

    def run(
        *words: object, adapter: object = None, document: object = document, question: str = "Who jumps?"
    ) -> Ended:
        given = {"--document": document, "--question": question, "--adapter": adapter, "--model": model}
        options = [str(word) for name, value in given.items() if value is not None for word in (name, value)]
        code = main(["generate", *options, "--max-new-tokens", "8", "--device", "cpu", *map(str, words)])
        return (code, *capfd.readouterr())

    return run


def read(model: Path, adapter: Path, question: str) -> tuple[PeftModel, dict[str, Any], torch.Tensor]:
    """The model as the library loads it, what it is given to answer a question, and the question's ids."""
    from transformers import AutoModelForCausalLM

    tokenizer = make_tiny_tokenizer()
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), adapter).eval()
    memory = adapted.encode(tokenizer(TEXT, return_tensors="pt").input_ids)
    messages = [{"role": "user", "content": question}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    return adapted, {**ids, "memory": memory, "max_new_tokens": 8}, ids["input_ids"]


def expected(model: Path, adapter: Path, question: str, **options: Any) -> str:
    """What the library answers, without the command line."""
    adapted, given, ids = read(model, adapter, question)
    output = adapted.generate(**given, **options)
    return make_tiny_tokenizer().decode(output[0, ids.shape[1] :], skip_special_tokens=True) + "\n"


def test_answers_are_on_stdout_and_each_is_the_librarys_to_that_question_alone(
    generate: Generate, model: Path, adapter: Path
) -> None:
    questions = ["Who jumps?", "Over what?"]
    code, out, err = generate("--question", questions[1], adapter=adapter)
    assert (code, out) == (0, "".join(expected(model, adapter, question) for question in questions))
    assert err.count("read ") == 1 and f"read {len(TEXT)} tokens" in err
    assert "untrained" not in err


def test_chunks_that_are_read_in_full_are_shown(generate: Generate, model: Path, adapter: Path) -> None:
    plain = generate("--read-chunks", 2, adapter=adapter)
    code, out, err = generate("--read-chunks", 2, "--show-chunks", adapter=adapter)
    assert (code, out) == plain[:2] == (0, expected(model, adapter, "Who jumps?", read_chunks=2))
    assert "read chunk" not in plain[2]
    adapted, given, ids = read(model, adapter, "Who jumps?")
    (scores,) = adapted.chunk_scores(ids, memory=given["memory"])
    shown = [line for line in err.splitlines() if "read chunk" in line]
    best = sorted(number for number in scores.topk(2).indices.tolist() if number < given["memory"].num_chunks)
    assert [line.split(" of ")[0].split()[-1] for line in shown] == [str(number + 1) for number in best]
    for line, number in zip(shown, best):
        begin = " ".join(TEXT[number * SIZES["chunk_size"] :][: SIZES["chunk_size"]].split())[:20]
        assert begin in line


def test_document_is_read_from_stdin(
    generate: Generate, model: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    assert generate(adapter=adapter, document="-")[:2] == (0, expected(model, adapter, "Who jumps?"))


def test_saved_memory_answers_without_the_document(
    generate: Generate, model: Path, adapter: Path, tmp_path: Path
) -> None:
    first = generate("--memory", tmp_path / "memory", adapter=adapter)
    second = generate("--memory", tmp_path / "memory", adapter=adapter, document=None)
    assert first[:2] == second[:2] == (0, expected(model, adapter, "Who jumps?"))
    assert "saved the memory" in first[2]
    assert f"loaded {len(TEXT)} tokens" in second[2]


def test_without_an_adapter_it_says_that_the_twins_are_untrained(generate: Generate) -> None:
    code, out, err = generate()
    assert code == 0 and out.endswith("\n")
    assert "untrained" in err


def test_sampling_with_a_seed_is_repeatable(generate: Generate) -> None:
    answers = [generate("--temperature", 2, "--seed", seed)[:2] for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]
    assert {code for code, _ in answers} == {0}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "cannot be read"),
        (b"", "is empty"),
        (b" \n\t", "is empty"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        (b"PK\x03\x04\x00\x00", "is not text"),
    ],
)
def test_bad_documents_end_with_code_3_before_a_model_is_loaded(
    content: bytes | None, complaint: str, generate: Generate, document: Path
) -> None:
    document.unlink()
    if content is not None:
        document.write_bytes(content)
    assert_one_sentence(generate("--model", "no-model"), 3, complaint)


SMALL = ["--chunk-size", 8, "--local-size", 200, "--prompt-size", 4]


@pytest.mark.parametrize(
    ("words", "ending"),
    [
        # after the model and the document, which may be given again
        (["--model", "no-model"], (4, "no-model cannot be loaded")),
        (["--model", "EMPTY"], (4, "--model EMPTY is there, but holds no")),
        (["--adapter", "EMPTY"], (4, "--adapter EMPTY is there, but holds no")),
        (
            ["--adapter", "nobody/nothing"],
            (4, "Can't find 'adapter_config.json' at 'nobody/nothing'. The Hub cannot be reached, or HF_HUB_OFFLINE"),
        ),
        (["--model", "no-model", "--memory", "FOLDER"], (5, "not empty")),
        (["--device", "toaster"], (2, "--device toaster cannot be used")),
        (["--device", "cuda:77"], (2, "--device cuda:77 cannot be used")),
        (["--show-chunks"], (2, "--read-chunks")),
        (["--local-size", 16, "--prompt-size", 32], (2, "--prompt-size (32) is larger than --local-size (16)")),
        # what there are no positions for, before the document is read
        (["--adapter", "ADAPTER", *SMALL, "--max-new-tokens", 10**9], (4, "1000000000 new tokens")),
        (["--adapter", "ADAPTER", *SMALL, "--question", "why? " * 200], (4, "few positions")),
    ],
)
def test_what_cannot_be_ends_with_its_code_and_one_sentence(
    words: list[Any], ending: tuple[int, str], generate: Generate, adapter: Path, document: Path
) -> None:
    folder = document.parent
    (folder / "empty").mkdir()
    places = {"EMPTY": folder / "empty", "FOLDER": folder, "ADAPTER": adapter}
    code, complaint = ending
    ended = generate(*[places.get(word, word) for word in words])
    assert_one_sentence(ended, code, complaint.replace("EMPTY", str(places["EMPTY"])))


def test_without_a_document_or_with_a_missing_memory_there_is_nothing_to_read(
    generate: Generate, tmp_path: Path
) -> None:
    assert_one_sentence(generate(document=None), 2, "--document")
    ended = generate("--memory", tmp_path / "no-memory", document=None)
    assert_one_sentence(ended, 4, "no-memory cannot be loaded")


def test_adapter_of_another_method_ends_with_code_4(generate: Generate, tmp_path: Path) -> None:
    lora = get_peft_model(make_tiny_model(dtype=torch.float32), LoraConfig(task_type="CAUSAL_LM"))
    lora.save_pretrained(tmp_path / "lora")
    assert_one_sentence(generate(adapter=tmp_path / "lora"), 4, "LORA")


def test_memory_of_other_sizes_ends_with_code_4(generate: Generate, adapter: Path, tmp_path: Path) -> None:
    memory = ("--memory", tmp_path / "memory")
    assert generate(*memory, adapter=adapter)[0] == 0
    ended = generate(*memory, "--chunk-size", 16, adapter=adapter, document=None)
    assert_one_sentence(ended, 4, "memory cannot be loaded")


READING = {
    "chunk-size": 16,
    "local-size": 20,
    "prompt-size": 6,
    "decoding": "streaming",
    "chunk-batch-size": 1,
    "read-chunks": 3,
    "storage": "disk",
    "storage-dir": "/tmp",
}


def test_every_field_that_may_change_after_training_has_an_option() -> None:
    words = [word for name, value in READING.items() for word in (f"--{name}", str(value))]
    given = ["generate", "--model", "m", "--document", "d", "--question", "?"]
    found = reading_options(build_parser().parse_args([*given, *words, "--no-add-bos"]))
    expected = {**{name.replace("-", "_"): value for name, value in READING.items()}, "add_bos": False}
    assert {name: value for name, value in found.items() if value is not None} == expected
    assert {*found, "spread_chunks"} == set(READING_FIELDS)
    assert FocusConfig().with_overrides(**found).read_chunks == READING["read-chunks"]
    assert set(reading_options(build_parser().parse_args(given)).values()) == {None}


def test_a_command_may_have_an_option_of_its_own_instead() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--read-chunks", type=int, default=1)
    add_reading_options(parser, leave_out=["read_chunks"])
    args = parser.parse_args(["--prompt-size", "4"])
    assert args.read_chunks == 1
    found = reading_options(args)
    assert found["prompt_size"] == 4 and "read_chunks" not in found


def test_an_option_changes_how_the_adapter_reads(generate: Generate, adapter: Path) -> None:
    for size, chunks in ((24, 8), (12, 15)):
        code, _, err = generate("--chunk-size", size, "--prompt-size", 4, adapter=adapter)
        assert code == 0 and f"in {chunks} chunks" in err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["generate"],
        ["generate", "--model", "m", "--document", "d", "--question", "?", "--max-new-tokens", "0"],
        ["generate", "--model", "m", "--document", "d", "--question", "?", "--decoding", "magic"],
        ["generate", "--model", "m", "--document", "d", "--question", "?", "--chunk-size", "0"],
        ["generate", "--model", "m", "--document", "d", "--question", "?", "--storage-dir", ""],
        ["generate", "--model", "m", "--document", "d", "--question", "?", "--seed", "-1"],
        ["generate", "--model", "m", "--document", "d", "--question", "?", "--seed", str(2**32)],
        ["generate", "--model", "m", "--document", "d", "--question", "?", "--top-p", "1.5"],
        ["generate", "--model", "m", "--document", "d", "--question", "?", "--temperature", "inf"],
        ["generate", "--model", "m", "--document", "d", "--question", os.fsdecode(b"caf\xe9")],
    ],
)
def test_wrong_usage_ends_with_code_2(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        main(arguments)
    assert ending.value.code == 2
    assert "usage: focus-peft" in capfd.readouterr().err


def test_a_memory_that_cannot_be_written_ends_with_code_5_before_a_model_is_loaded(
    generate: Generate, document: Path, tmp_path: Path
) -> None:
    before = sorted(tmp_path.iterdir())
    for place in (document / "x", document / "x" / "y", "/proc/memory"):
        ended = generate("--model", "no-model", "--memory", place)
        assert_one_sentence(ended, 5, "no directory that can be written to")
    assert sorted(tmp_path.iterdir()) == before
    assert generate("--model", "no-model", "--memory", tmp_path / "a" / "b")[0] == 4
    assert sorted(tmp_path.iterdir()) == before, "nothing is left of the trial"


def test_names_of_arguments_become_options_and_others_stay() -> None:
    message = "`chunk_size` (3) and `repo_id`; give `overwrite=True`, not `memory`."
    named = naming_options(message, ["chunk_size", "repo", "overwrite"])
    assert named == "--chunk-size (3) and --repo; give --overwrite, not `memory`."


def test_publish_knows_the_types_that_weights_can_be_rounded_to() -> None:
    assert tuple(weights.DTYPES) == publish.DTYPES


def test_ctrl_c_ends_with_code_130(generate: Generate, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Interrupted()))
    assert generate(document="-") == (130, "", "focus-peft: interrupted.\n")


def test_debug_shows_the_error_itself(generate: Generate, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="cannot be read"):
        generate("--debug", document=tmp_path / "none.txt")


def test_python_m_runs_the_command_and_help_names_the_exit_codes(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["focus-peft", "generate", "--help"])
    with pytest.raises(SystemExit) as ending:
        runpy.run_module("focus_peft", run_name="__main__")
    assert ending.value.code == 0
    printed = capfd.readouterr().out
    assert "usage: focus-peft generate" in printed
    assert "exit codes:" in printed


def assert_one_sentence(ended: Ended, expected_code: int, complaint: str) -> None:
    """Nothing on stdout, and on stderr a last line that says what went wrong, without a traceback."""
    code, out, err = ended
    assert (code, out) == (expected_code, "")
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert last.startswith("focus-peft: error: ")
    assert complaint in last
