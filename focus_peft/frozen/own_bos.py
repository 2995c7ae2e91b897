"""Whether a model was made to see BOS before a text: its own tokenizer's rule."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import AutoTokenizer, PreTrainedModel


logger = logging.getLogger(__name__)

# Families whose tokenizers have no BOS, although their configurations name one
WITHOUT_BOS = "qwen"


def reads_bos(model: PreTrainedModel, bos: int | None) -> bool:
    """Whether the model's tokenizer puts `bos`, the model's BOS, before a text.

    Only files on this machine are asked: those in the folder that the model was loaded from, or in the Hub's cache.
    Without them, the model is taken to read BOS, as most do, unless its family is known not to.
    """
    if bos is None:
        return False
    if not model.name_or_path:  # built in code
        return True
    ids = _tokens(model)
    if ids is not None:
        return ids[0] == bos
    if model.config.model_type.startswith(WITHOUT_BOS):
        return False
    logger.warning(
        "No tokenizer of %r is on this machine that says whether the model reads BOS before a text, so BOS is put "
        "before prompts and windows. Set `add_bos`, or load the tokenizer before the adapter is made.",
        model.name_or_path,
    )
    return True


def _tokens(model: PreTrainedModel) -> list[int] | None:
    """A letter in the tokens of the model's tokenizer, with what it adds. None where there is no such tokenizer."""
    letter = "a"
    try:
        folder = _folder(model)
        # not by the model's name, for which transformers may ask the Hub what family it is
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        ids = tokenizer(letter).input_ids
        # without files, transformers makes some families' tokenizers with an empty vocabulary
        return ids if tokenizer.decode(ids, skip_special_tokens=True).strip() == letter else None
    except Exception:  # whatever lies there: nothing, a GGUF file, a damaged file, one for a library that is missing
        return None


def _folder(model: PreTrainedModel) -> str:
    """Where the files beside the model are."""
    name = str(model.name_or_path)
    if Path(name).is_dir():
        return name
    return snapshot_download(name, revision=getattr(model.config, "_commit_hash", None), local_files_only=True)
