"""The model of the demos: SmolLM2-135M-Instruct with the adapter in `hub/`."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any, cast

from lib.base_model import ModelArguments, fast_dtype, load_model
from lib.command_line import positive
from lib.packaged_model import PACKAGED, find_model
from peft import PeftConfig, PeftModel
from transformers import logging

from focus_peft import FocusConfig
from focus_peft.cli.reading_options import add_reading_options


ADAPTER = Path(__file__).resolve().parents[2] / "hub" / "smollm2-135m-instruct-focus"


def add_options(parser: argparse.ArgumentParser, new_tokens: int) -> None:
    """The options that both demos have; `new_tokens` is the default for the longest answer."""
    length = "length of the Python reference, the example (default: 30000)"
    parser.add_argument("--tokens", type=int, default=30000, help=length)
    longest = f"the longest answer (default: {new_tokens})"
    parser.add_argument("--new-tokens", type=int, default=new_tokens, help=longest)
    reads = "chunks that are read in full for the last answer (default: 1)"
    parser.add_argument("--read-chunks", type=positive, default=1, help=reads)
    parser.add_argument("--adapter", type=Path, default=ADAPTER, help="default: the one in hub/")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: the faster one on this machine")
    parser.add_argument("--seed", type=int, default=0, help="chooses the hidden number and its place")
    add_reading_options(parser, leave_out=["read_chunks"])


def load(adapter: Path, dtype: str | None = None, **options: Any) -> tuple[Any, Any]:
    """(SmolLM2-135M-Instruct with the adapter, tokenizer), which read with the given options.

    `dtype` defaults to the faster one on this machine.
    """
    logging.set_verbosity_error()
    warnings.simplefilter("ignore", FutureWarning)  # between PEFT and transformers
    if not (adapter / "adapter_config.json").is_file():
        raise SystemExit(f"error: {adapter} holds no adapter; give the folder of one with `--adapter`.")
    print(f"Loading {find_model()[1]} and the adapter in {adapter} ...", flush=True)
    try:
        config = cast(FocusConfig, PeftConfig.from_pretrained(str(adapter))).with_overrides(**options)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    base, tokenizer = load_model(ModelArguments(PACKAGED, dtype=dtype or fast_dtype()))
    return PeftModel.from_pretrained(base, adapter, config=config).eval(), tokenizer
