"""From a trained adapter to a repository on the Hub."""

from .adapter import push_adapter, save_adapter
from .errors import HubError
from .release import Release, publishable_files
from .repository import Upload


__all__ = ["HubError", "Release", "Upload", "publishable_files", "push_adapter", "save_adapter"]
