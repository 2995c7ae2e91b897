"""The adapter of a model in memory: to a folder, whole or not at all, and to a repository on the Hub with its card."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi, ModelCard
from huggingface_hub.errors import RemoteEntryNotFoundError
from peft import PeftModel
from peft.utils import CONFIG_NAME

from ..config import FocusConfig
from ..saving import disk_errors, saving_whole
from .card import CARD_FILE, MARK, add_tags, saved_card
from .public import public_base, public_config
from .repository import check_private


def save_adapter(model: PeftModel, directory: str | os.PathLike, **options: Any) -> None:
    """Save an adapter as `model.save_pretrained` does, whole or not at all.

    A full disk leaves what was there. The tags of a card that is there stay in it.

    Args:
        model (`PeftModel`): The model with the adapter.
        directory (`str`): The folder to save in.
        options: As for `model.save_pretrained`.

    Raises:
        OSError: if the folder cannot be written.
    """
    target = Path(directory)
    with disk_errors(f"`directory` {str(target)!r}"), saving_whole(target) as scratch:
        before, card = target / CARD_FILE, scratch / CARD_FILE
        if before.is_file():
            shutil.copyfile(before, card)
        model.save_pretrained(str(scratch), **options)
        if before.is_file() and MARK not in card.read_text(encoding="utf-8"):
            add_tags(card, ModelCard.load(before).data.get("tags") or [])  # which PEFT replaces


def push_adapter(
    model: PeftModel,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    tags: list[str] | None = None,
    token: str | bool | None = None,
) -> CommitInfo:
    """Upload an adapter with its card, which `model.push_to_hub` replaces with one that does not say how to load it.

    A card that somebody wrote in the repository stays as it is.

    Args:
        model (`PeftModel`): The model; its active adapter is uploaded, whatever it is called.
        repo_id (`str`): "user/name" or "organization/name"; the repository is made if it is not there.
        private (`bool`, *optional*): Make the repository private. Defaults to what the account has set.
        revision (`str`, *optional*): A branch; it is made if it is not there. Defaults to main.
        tags (`list[str]`, *optional*): More tags for the card.
        token (`str`, *optional*): A token of the Hub. Defaults to the one that `hf auth login` or HF_TOKEN gave.

    Returns:
        `CommitInfo`: the commit.

    Raises:
        ValueError: if the model has no focus adapter, or the repository is public, and `private` asked for.
    """
    name = model.active_adapters[0]
    config = model.peft_config[name]
    if not isinstance(config, FocusConfig):
        raise ValueError(
            f"`model` has a {config.peft_type} adapter, not one of focus_peft; upload it with `model.push_to_hub`."
        )
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if private:
        check_private(repo_id, api.model_info(repo_id).private)
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch, selected_adapters=[name])
        # where PEFT puts it, and where the card's `from_pretrained` looks for the repository's own files
        folder = Path(scratch) if name == "default" else Path(scratch, name)
        file = folder / CONFIG_NAME
        values = json.loads(file.read_text(encoding="utf-8"))
        public = public_config(values, public_base(values["base_model_name_or_path"]))
        file.write_text(json.dumps(public, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        card = folder / CARD_FILE
        theirs = _card_of(api, repo_id, revision)
        if theirs is None or MARK in theirs.decode("utf-8", errors="replace"):
            saved_card(config, repo_id, revision).save(card)
        else:
            card.write_bytes(theirs)
        if tags:
            add_tags(card, tags)
        return api.upload_folder(
            repo_id=repo_id, folder_path=folder, revision=revision, commit_message="Upload adapter"
        )


def _card_of(api: HfApi, repo_id: str, revision: str | None) -> bytes | None:
    try:
        return Path(api.hf_hub_download(repo_id, CARD_FILE, revision=revision)).read_bytes()
    except RemoteEntryNotFoundError:
        return None
