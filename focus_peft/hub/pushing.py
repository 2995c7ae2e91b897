"""`PeftModel.push_to_hub` for focus adapters: with their card, and without pickles."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError

from .card import CARD_FILE, MARK, add_tags, write_card
from .saving import focus_config


def pushes_card(push_to_hub: Callable[..., Any], peft_type: Any) -> Callable[..., Any]:
    """Wrap `PeftModel.push_to_hub`, which gives a fresh repository a card without content, for models with a focus adapter.

    A card that the repository has stays as it is, as ever. Other adapters are pushed as ever.
    """

    @functools.wraps(push_to_hub)
    def push(
        self: Any,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        tags: list[str] | None = None,
        max_shard_size: Any = None,  # adapters are not divided
        **options: Any,
    ) -> Any:
        config = focus_config(self, peft_type)
        if config is None:
            given: dict[str, Any] = {"commit_message": commit_message, "commit_description": commit_description}
            given |= {"private": private, "token": token, "revision": revision, "create_pr": create_pr or None}
            given |= {"tags": tags, "max_shard_size": max_shard_size, **options}
            return push_to_hub(self, repo_id, **{name: value for name, value in given.items() if value is not None})
        if not options.get("safe_serialization", True):
            raise ValueError(
                "`safe_serialization` is False, which would upload a pickle; leave it out, and safetensors are uploaded."
            )
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/pr"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **options)
            _finish_card(Path(folder, CARD_FILE), config, api, repo_id, revision, tags)
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message or "Upload model",
                commit_description=commit_description,
                revision=revision,
                create_pr=create_pr,
            )

    push.pushes_card = True  # type: ignore[attr-defined]
    return push


def _finish_card(
    file: Path, config: Any, api: HfApi, repo_id: str, revision: str | None, tags: list[str] | None
) -> None:
    """The repository's own card, if it has one and somebody wrote it; else one that says where the adapter is."""
    try:
        theirs = Path(api.hf_hub_download(repo_id, CARD_FILE, revision=revision)).read_text(encoding="utf-8")
    except EntryNotFoundError:
        theirs = None
    if theirs is None or MARK in theirs:
        write_card(file, None, config, repo_id)
    else:
        file.write_bytes(theirs.encode("utf-8"))
    if tags:
        add_tags(file, tags)
