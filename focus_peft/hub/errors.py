"""Why the Hub, or the network before it, said no: as a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


class HubError(Exception):
    """What the Hub refused or did not answer, as a sentence with the remedy. What was uploaded before stays there."""


def hub_reason(error: BaseException, repo_id: str) -> str | None:
    """What an error of the Hub, or one that it led to, means for a user; None if the Hub had no part in it."""
    seen: BaseException | None = error
    while seen is not None:
        if reason := _reason(seen, repo_id):
            return reason
        seen = seen.__cause__ or seen.__context__
    return None


def _reason(error: BaseException, repo_id: str) -> str | None:
    login = "log in with `hf auth login`, or set HF_TOKEN to a token that may"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    if isinstance(error, LocalTokenNotFoundError):
        return f"The Hub asks for a token, and there is none; {login}."
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the Hub cannot be asked; unset it."
    if isinstance(error, RevisionNotFoundError):
        return f"The repository {repo_id!r} has no such revision."
    if isinstance(error, LocalEntryNotFoundError):
        return f"The Hub cannot be reached, or HF_HUB_OFFLINE is set, and there is no copy of {repo_id!r} here."
    if isinstance(error, EntryNotFoundError):
        return f"The repository {repo_id!r} has no such file."
    if isinstance(error, RepositoryNotFoundError) or status in (401, 403):
        return f"The repository {repo_id!r} does not exist, or is private and not for this token; {login}."
    if status in (409, 412):
        return (
            f"Somebody else has changed the repository {repo_id!r} just now; look at what they did and run this again."
        )
    if isinstance(error, HfHubHTTPError):
        return f"The Hub failed ({str(error).splitlines()[0]}); run this again, and only what is missing will be sent."
    if type(error).__module__.partition(".")[0] in ("httpx", "httpcore", "httpx2", "requests", "urllib3"):
        return f"The Hub cannot be reached ({type(error).__name__}: {error}); run this again when it can."
    return None


@contextmanager
def explained(repo_id: str) -> Iterator[None]:
    """Within the context, errors of the Hub become a `HubError` with a sentence."""
    try:
        yield
    except Exception as error:
        reason = hub_reason(error, repo_id)
        if reason is None and isinstance(error, RuntimeError):  # of hf_xet, which sends large files
            reason = f"The upload failed ({error}); run this again, and only what is missing will be sent."
        if reason is None:
            raise
        raise HubError(reason) from error
