"""A small evaluation, which the tests of `recipes/evaluate.py` run in their own process."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml


pytest.importorskip("datasets")

from evaluating.sample_file import key_of


ROOT = Path(__file__).parents[2]
# under a name of its own: there is a package `evaluate`, which other tests may want
SPEC: Any = importlib.util.spec_from_file_location("evaluation_recipe", ROOT / "recipes" / "evaluate.py")
recipe: Any = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(recipe)
TEXT = "It was a dark night; the rain fell in torrents, and a gust of wind swept up the streets. " * 40
# reads bytes
MODEL: dict[str, Any] = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
MODEL |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 512}
FOCUS = {"chunk_size": 64, "local_size": 64, "prompt_size": 16}


def write_config(folder: Path, **values: Any) -> Path:
    """A configuration of the small model, with two methods unless `values` say otherwise."""
    common = {"model": {"random": MODEL}, "focus": FOCUS, "methods": ["adapter", "full_attention"]}
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump({**common, "output_dir": str(folder / "out"), **values}))
    return file


def config_of_texts(folder: Path) -> Path:
    """Perplexity and passkeys, at two lengths, with two methods: 18 samples, of which 6 are not possible."""
    (folder / "book.txt").write_text(TEXT)
    tasks = {"perplexity": {"samples": 2, "labels": 16}, "passkey": {"samples": 4}}
    return write_config(folder, texts=[str(folder / "*.txt")], lengths=[400, 600], tasks=tasks)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return config_of_texts(tmp_path)


def run(config: Path, *words: str, out: Path | None = None) -> tuple[bool, Path]:
    """(whether all was run, the folder, which is in `out`)."""
    elsewhere = [] if out is None else [f"output_dir={out}"]
    out = out or config.parent / "out"
    options, overrides = recipe.parse_args(["--config", str(config), *words, *elsewhere])
    before = set(out.glob("*"))
    done = recipe.main(options, overrides)
    after = set(out.glob("*"))
    latest = max(after, key=lambda folder: (folder / "table.md").stat().st_mtime_ns)
    return done, next(iter(after - before), latest)


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_bytes().splitlines()]


def summary_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def without_times(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(({**sample, "seconds": 0} for sample in samples), key=lambda sample: str(key_of(sample)))
