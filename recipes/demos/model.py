"""The model of the demos: SmolLM2-135M-Instruct with the adapter in `hub/`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, cast

from lib.base_model import ModelArguments, fast_dtype, load_model
from lib.packaged_model import PACKAGED, find_model
from peft import PeftConfig, PeftModel
from transformers import logging

from focus_peft import FocusConfig


ADAPTER = Path(__file__).resolve().parents[2] / "hub" / "smollm2-135m-instruct-focus"


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
