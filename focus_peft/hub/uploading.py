"""Uploads to the Hub: what is there is compared first, nothing is overwritten unasked, and what is there already is not sent again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import (
    HFValidationError,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id

from .errors import _explained


BLOCK = 1 << 20


@dataclass(frozen=True)
class Comparison:
    """A folder's files against a revision of a repository, by name.

    Attributes:
        exists (`bool`): Whether there is such a repository, to this token.
        private (`bool`, *optional*): Whether it is private.
        head (`str`, *optional*): The commit that was looked at; None: there is no such revision.
        new, changed, same (`list[str]`): Files that are not there, that differ, and that are there with the same content.
        others (`list[str]`): What else is there.
        own (`bool`): Whether the revision has commits that main has not, or is main. If not, replacing its files loses nothing.
        tags (`dict[str, str]`): The repository's tags, and their commits.
    """

    exists: bool
    private: bool | None = None
    head: str | None = None
    new: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    same: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    own: bool = True
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Uploaded:
    """What came of an upload.

    Attributes:
        commit (`str`): The commit that has all the files.
        others (`list[str]`): What else is in it.
    """

    commit: str
    others: list[str]


def compare(
    files: Mapping[str, Path], repo_id: str, revision: str | None = None, api: HfApi | None = None
) -> Comparison:
    """Compare files, by their names in a repository, with what is there. Reads only.

    A branch that is not there yet is compared with main, from which it will be made.

    Raises:
        ValueError: if `repo_id` is no name of a repository.
        HubError: if the Hub does not answer.
    """
    check_repo_id(repo_id)
    api = api or HfApi()
    with _explained(repo_id):
        try:
            info = api.model_info(repo_id)
        except RepositoryNotFoundError:
            return Comparison(exists=False, new=list(files))
        refs = api.list_repo_refs(repo_id)
        heads = {branch.name: branch.target_commit for branch in refs.branches}
        looked_at = revision if revision in heads else "main"
        tree = list(api.list_repo_tree(repo_id, recursive=True, revision=looked_at)) if looked_at in heads else []
    remote = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    groups: dict[str, list[str]] = {"new": [], "changed": [], "same": []}
    for name, file in files.items():
        known = remote.get(name)
        groups["new" if known is None else "same" if _same(file, known) else "changed"].append(name)
    return Comparison(
        True,
        bool(info.private),
        heads.get(revision or "main"),
        **groups,
        others=[name for name in remote if name not in files and not name.startswith(".")],
        own=revision in (None, "main") or heads.get(looked_at) != heads.get("main"),
        tags={tag.name: tag.target_commit for tag in refs.tags},
    )


def upload(
    files: Mapping[str, Path],
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    tag: str | None = None,
    overwrite: bool = False,
    message: str = "Publish adapter",
    api: HfApi | None = None,
) -> Uploaded:
    """Put files into a repository, in a single commit, and make what is missing: the repository, the branch, the tag.

    Run again after a failure, it sends only what has not arrived. Files that are in the repository and not in `files` stay.

    Args:
        files (`Mapping[str, Path]`): Local files by their names in the repository.
        repo_id (`str`): "user/name" or "organisation/name".
        private (`bool`, *optional*): Make the repository private. Default: as the account or organisation has it.
        revision (`str`, *optional*): A branch; it is made from main if there is none. Default: main.
        tag (`str`, *optional*): A tag for the commit.
        overwrite (`bool`): Replace files that are there and differ. Default: False.

    Returns:
        [`Uploaded`]: the commit that has all the files.

    Raises:
        FileExistsError: if files are there and differ, without `overwrite`; or if `tag` is there, for another commit.
        ValueError: if the repository is public, and `private` asked for; or `repo_id` is no name of a repository.
        HubError: if the Hub refuses or does not answer.
    """
    check_repo_id(repo_id)
    api = api or HfApi()
    there = compare(files, repo_id, revision, api)
    check(there, repo_id, private=private, tag=tag, overwrite=overwrite)
    with _explained(repo_id):
        if not there.exists:
            api.create_repo(repo_id, private=private)
        if revision is not None and revision != "main" and there.head is None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        head = there.head or api.model_info(repo_id, revision=revision).sha
        if there.new or there.changed:
            additions = [
                CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(files[name]))
                for name in there.new + there.changed
            ]
            # refused if anybody has committed since the comparison
            done = api.create_commit(repo_id, additions, commit_message=message, revision=revision, parent_commit=head)
            head = done.oid
        if tag is not None and tag not in there.tags:
            api.create_tag(repo_id, tag=tag, revision=head)
    return Uploaded(str(head), there.others)


def check(
    there: Comparison, repo_id: str, *, private: bool | None = None, tag: str | None = None, overwrite: bool = False
) -> None:
    """Raise what [`upload`] would raise before it sends anything."""
    if there.exists and private and not there.private:
        raise ValueError(
            f"`private` was asked for, but the repository {repo_id!r} is there and public; choose another name, or make it "
            "private in its settings first."
        )
    if there.changed and there.own and not overwrite:
        raise FileExistsError(
            f"The repository {repo_id!r} has files that differ from these: {', '.join(there.changed)}. Give `overwrite` to "
            "replace them; the old ones stay in its history."
        )
    if tag is not None and tag in there.tags and (there.new or there.changed or there.tags[tag] != there.head):
        raise FileExistsError(
            f"The repository {repo_id!r} has the tag {tag!r} for another commit, and tags are never moved; choose another `tag`."
        )


def check_repo_id(repo_id: str) -> None:
    """Raise a ValueError unless this may be the full name of a repository."""
    with suppress(HFValidationError):
        validate_repo_id(repo_id)
        if "/" in repo_id:
            return
    raise ValueError(f"`repo_id` must be a name such as 'user/adapter' or 'organisation/adapter', got {repo_id!r}.")


def _same(file: Path, remote: RepoFile) -> bool:
    """Whether a file of the Hub has this content: by its SHA-256 if it is large, else by git's own hash."""
    size = file.stat().st_size
    if size != remote.size:
        return False
    if remote.lfs is not None:
        return _digest(file, hashlib.sha256()) == remote.lfs.sha256
    return _digest(file, hashlib.sha1(b"blob %d\0" % size)) == remote.blob_id


def _digest(file: Path, digest: Any) -> str:
    with file.open("rb") as data:
        while block := data.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
