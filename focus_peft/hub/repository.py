"""Uploads to the Hub: what is there is compared first, nothing is overwritten unasked, and nothing is sent twice."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from ..adapter_file import WEIGHTS_FILE
from .errors import explained
from .public_files import is_published


@dataclass(frozen=True)
class Comparison:
    """A folder's files against a revision of a repository, by name.

    Attributes:
        exists (`bool`): Whether there is such a repository, to this token.
        private (`bool`): Whether it is private.
        head (`str`, *optional*): The commit that the files were compared with; None: there is no such revision.
        new, changed (`list[str]`): Files that are not there, and that differ.
        stale (`list[str]`): Results, recipe and figures that are there, of other weights than these.
        others (`list[str]`): What else is there.
        own (`bool`): Whether the revision has commits that main has not, or is main. If not, replacing its files loses
            nothing.
        tags (`dict[str, str]`): The repository's tags, and their commits.
    """

    exists: bool
    private: bool = False
    head: str | None = None
    new: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    own: bool = True
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Upload:
    """Files for a repository, sent in a single commit. What is missing is made: the repository, the branch, the tag.

    Files that are in the repository and not in `files` stay, but for what was published of other weights.

    Attributes:
        files (`Mapping[str, Path]`): Local files by their names in the repository.
        repo_id (`str`): "user/name" or "organization/name".
        revision (`str`, *optional*): A branch; it is made from main if there is none. Defaults to main.
        tag (`str`, *optional*): A tag for the commit.
        private (`bool`, *optional*): Make the repository private. Defaults to what the account has set.
        overwrite (`bool`): Replace files that are there and differ. Defaults to False.
        api (`HfApi`): The client.

    Raises:
        ValueError: if `repo_id` cannot be the name of a repository.
    """

    files: Mapping[str, Path]
    repo_id: str
    revision: str | None = None
    tag: str | None = None
    private: bool | None = None
    overwrite: bool = False
    api: HfApi = field(default_factory=HfApi)

    def __post_init__(self) -> None:
        check_repo_id(self.repo_id)

    def compare(self) -> Comparison:
        """Compare the files with what is there. Reads only.

        A branch that is not there yet is compared with main, from which it will be made.

        Raises:
            HubError: if the Hub does not answer.
        """
        with explained(self.repo_id):
            try:
                info = self.api.model_info(self.repo_id)
            except RepositoryNotFoundError:
                return Comparison(exists=False, new=list(self.files))
            refs = self.api.list_repo_refs(self.repo_id)
            heads = {branch.name: branch.target_commit for branch in refs.branches}
            branch = self.revision if self.revision in heads else "main"
            tree = self.api.list_repo_tree(self.repo_id, recursive=True, revision=branch) if branch in heads else ()
            remote = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
        there = {name: _same_content(file, remote[name]) for name, file in self.files.items() if name in remote}
        others = [name for name in remote if name not in self.files and not name.startswith(".")]
        stale = [name for name in others if is_published(name)] if there.get(WEIGHTS_FILE) is False else []
        return Comparison(
            exists=True,
            private=bool(info.private),
            head=heads.get(self.revision or "main"),
            new=[name for name in self.files if name not in remote],
            changed=[name for name, same in there.items() if not same],
            stale=stale,
            others=[name for name in others if name not in stale],
            own=self.revision in (None, "main") or heads.get(branch) != heads.get("main"),
            tags={tag.name: tag.target_commit for tag in refs.tags},
        )

    def check(self, there: Comparison) -> None:
        """Raise what `send` would raise before it sends anything.

        Raises:
            FileExistsError: if files differ, without `overwrite`; or if `tag` is there, for another commit.
            ValueError: if the repository is public, and `private` asked for.
        """
        if there.exists and self.private:
            check_private(self.repo_id, there.private)
        if there.changed and there.own and not self.overwrite:
            files = ", ".join([*there.changed, *there.stale])
            raise FileExistsError(
                f"The repository {self.repo_id!r} has files that differ from these: {files}. Give "
                "`overwrite` to replace them; the old ones stay in its history."
            )
        if self.tag in there.tags and (there.new or there.changed or there.tags[self.tag] != there.head):
            raise FileExistsError(
                f"The repository {self.repo_id!r} has the tag {self.tag!r} for another commit, and tags are never "
                "moved; choose another `tag`."
            )

    def send(self, there: Comparison) -> str:
        """Send what is not there. Run again after a failure, it sends only what has not arrived.

        Args:
            there (`Comparison`): What `compare` found.

        Returns:
            `str`: the commit that has all the files.

        Raises:
            FileExistsError, ValueError: as `check`.
            HubError: if the Hub refuses or does not answer, or somebody has committed since the comparison.
        """
        self.check(there)
        with explained(self.repo_id):
            if not there.exists:
                self.api.create_repo(self.repo_id, private=self.private)
            if self.revision not in (None, "main") and there.head is None:
                self.api.create_branch(self.repo_id, branch=self.revision, exist_ok=True)
            head = there.head or self.api.model_info(self.repo_id, revision=self.revision).sha
            if there.new or there.changed:
                done = self.api.create_commit(
                    self.repo_id,
                    [
                        *(CommitOperationAdd(name, str(file)) for name, file in self.files.items()),
                        *(CommitOperationDelete(name) for name in there.stale),
                    ],
                    commit_message="Publish adapter",
                    revision=self.revision,
                    parent_commit=head,
                )
                head = done.oid
            if self.tag is not None and self.tag not in there.tags:
                self.api.create_tag(self.repo_id, tag=self.tag, revision=head)
        return str(head)


def check_private(repo_id: str, private: bool | None) -> None:
    """Raise a ValueError unless a repository that is there, and shall be private, is."""
    if not private:
        raise ValueError(
            f"`private` was asked for, but the repository {repo_id!r} is there and public; choose another name, or "
            "make it private in its settings first."
        )


def check_repo_id(repo_id: str) -> None:
    """Raise a ValueError unless this may be the full name of a repository."""
    with suppress(HFValidationError):
        validate_repo_id(repo_id)
        if "/" in repo_id:
            return
    raise ValueError(f"`repo_id` must be a name such as 'user/adapter' or 'organization/adapter', got {repo_id!r}.")


def _same_content(file: Path, remote: RepoFile) -> bool:
    """Whether a file of the Hub has this content: by its SHA-256 if it is large, else by git's own hash."""
    if remote.lfs is None:
        return git_hash(file.read_bytes()) == remote.blob_id
    with file.open("rb") as data:
        return sha_fileobj(data).hex() == remote.lfs.sha256
