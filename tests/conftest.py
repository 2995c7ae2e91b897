"""Tiny random models of every supported kind, built in code, and small helpers that the tests share."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing in the tests may look for a file on a server
sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))
sys.path.extend(
    str(room) for room in Path(__file__).parent.iterdir() if room.is_dir()
)  # some share what others define

import pytest
import torch
from lib.byte_tokenizer import byte_tokenizer
from models_table import TableWriter
from peft import PeftModel
from tiny import (
    BOS,
    EOS,
    IDS,
    PAD,
    ROOT,
    VOCABULARY,
    logits_of,
    make_focus_model,
    make_tiny_model,
    pad_rows,
    perturb_twins,
    random_ids,
    randomize,
    small_config,
)
from transformers import PreTrainedTokenizerFast


__all__ = [
    "BOS",
    "EOS",
    "IDS",
    "PAD",
    "ROOT",
    "VOCABULARY",
    "logits_of",
    "make_focus_model",
    "make_tiny_model",
    "make_tiny_tokenizer",
    "pad_rows",
    "perturb_twins",
    "random_ids",
    "randomize",
    "small_config",
]


# A shell's background ignores Ctrl-C, which some tests press
signal.signal(signal.SIGINT, signal.default_int_handler)


each_rank = pytest.mark.parametrize("r", [None, 4], ids=["full", "low-rank"])
each_decoding = pytest.mark.parametrize("decoding", ["streaming", "exact"])


def make_tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte tokenizer of 259 tokens with the special tokens of the tiny models and a chat template."""
    fast = byte_tokenizer(padding_side="left")
    fast.chat_template = (
        "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    return fast


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-table", metavar="FILE", help="write what the matrix of families finds into the table of FILE"
    )


def pytest_configure(config: pytest.Config) -> None:
    file = config.getoption("write_table")
    if file and not hasattr(config, "workerinput"):  # with pytest-xdist, the controller hears of every outcome
        config.pluginmanager.register(TableWriter(Path(file)))
    # PEFT 0.21 itself asks for this attribute whenever it wraps a model
    config.addinivalue_line("filterwarnings", "ignore:.*is_gradient_checkpointing.*:FutureWarning")


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte tokenizer."""
    return make_tiny_tokenizer()


@pytest.fixture(scope="module")
def model() -> PeftModel:
    """A focus model with the twins and windows of `make_focus_model`, which tests leave as it is."""
    return make_focus_model()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What is published: see `published`, which imports from here."""
    from published import make_trained

    return make_trained(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def hub_server() -> Iterator[Any]:
    """A server that speaks the Hub's API: see `hub_server`."""
    from hub_server import running_hub

    with running_hub() as hub:
        yield hub


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Tiny models are fastest on one thread, and their sums are the same on every machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def distributed(tmp_path: Path) -> Iterator[None]:
    """One process of torch.distributed, which may share chunks with itself."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def save_base(folder: Path, template: str | None = None, **config: Any) -> None:
    """Save a tiny model that reads bytes, with its tokenizer; `config` as of `make_tiny_model`."""
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = template or tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    make_tiny_model(vocab_size=len(tokenizer), **config).save_pretrained(folder)
