"""A server on this machine that speaks as much of the Hub's API as its client needs to make, fill and read
repositories.

Commits are whole or not there, large files (.safetensors) go through LFS, private repositories are for their owners,
and what was asked is written down. It can be told to fail.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


TOKEN, USER, ORGANISATIONS = "hf_test", "user", ["org"]
LARGE = ".safetensors"


def blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repository:
    """Commits are mappings from names to contents; branches and tags are names of commits."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes | None]) -> str:
        """Add files, and remove those whose content is None."""
        parent = self.branches.get(branch)
        before = self.commits[parent] if parent else {}
        content = {name: data for name, data in {**before, **files}.items() if data is not None}
        names = [parent or ""] + [f"{name} {blob_id(data)}" for name, data in sorted(content.items())]
        sha = hashlib.sha1("\n".join(names).encode()).hexdigest()
        self.commits[sha] = content
        self.branches[branch] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        return (
            self.branches.get(revision) or self.tags.get(revision) or (revision if revision in self.commits else None)
        )


@dataclass
class Hub:
    """What the server holds.

    Attributes:
        stored (`dict[str, bytes]`): Large files by their SHA-256, whether or not a commit has them.
        requests (`list[str]`): Method and path of every request.
        failing (`dict[str, int]`): How often requests whose "METHOD path" holds a text are still to be refused.
    """

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    failing: dict[str, int] = field(default_factory=dict)

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        repository = self.repositories[repo_id]
        return repository.commits[repository.resolve(revision) or ""]

    def asked(self, text: str) -> int:
        """How many requests had a text in them."""
        return sum(text in request for request in self.requests)


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A server on a free port of this machine."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Refused(Exception):
    def __init__(self, status: int, message: str, code: str = "", **more: str) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.more = status, message, code, more


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                self.body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        path = urlsplit(self.path).path
        request = f"{self.command} {unquote(path)}"
        self.hub.requests.append(request)
        try:
            for text, left in self.hub.failing.items():
                if text in request and left:
                    self.hub.failing[text] -= 1
                    raise _Refused(507, "No room left")
            self.route([unquote(part) for part in path.strip("/").split("/")])
        except _Refused as refusal:
            error = json.dumps({"error": refusal.message, **refusal.more}).encode()
            self.send(error, refusal.status, {"X-Error-Message": refusal.message, "X-Error-Code": refusal.code})

    def send(self, data: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def send_json(self, value: Any) -> None:
        self.send(json.dumps(value).encode(), headers={"Content-Type": "application/json"})

    # Who may do what

    @property
    def known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def must_be_known(self) -> None:
        if not self.known:
            raise _Refused(401, "Invalid username or password.")

    def repository(self, repo_id: str) -> Repository:
        found = self.hub.repositories.get(repo_id)
        if found is None or (found.private and not self.known):
            raise _Refused(404 if self.known else 401, "Repository not found", "RepoNotFound")
        return found

    def commit_of(self, repository: Repository, revision: str) -> str:
        sha = repository.resolve(revision)
        if sha is None:
            raise _Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    # What may be asked

    def route(self, parts: list[str]) -> None:
        if parts == ["api", "whoami-v2"]:
            self.must_be_known()
            self.send_json({"type": "user", "name": USER, "orgs": [{"name": name} for name in ORGANISATIONS]})
        elif parts == ["api", "validate-yaml"]:
            self.send_json({"warnings": [], "errors": []})
        elif parts == ["api", "repos", "create"]:
            self.create(json.loads(self.body))
        elif parts[:2] == ["api", "models"]:
            repo_id = "/".join(parts[2:4])
            self.model(repo_id, self.repository(repo_id), parts[4:])
        elif parts[0] == "lfs":
            assert hashlib.sha256(self.body).hexdigest() == parts[1]
            self.hub.stored[parts[1]] = self.body
            self.send(b"")
        elif parts[2:] == ["info", "lfs", "objects", "batch"]:
            self.must_be_known()
            objects = json.loads(self.body)["objects"]
            self.send_json({"transfer": "basic", "objects": [self.transfer(entry) for entry in objects]})
        elif parts[2:3] == ["resolve"]:
            self.file(self.repository("/".join(parts[:2])), parts[3], "/".join(parts[4:]))
        else:
            raise _Refused(404, f"The stub knows no {self.path}")

    def create(self, asked: dict[str, Any]) -> None:
        self.must_be_known()
        owner = asked.get("organization") or USER
        repo_id = f"{owner}/{asked['name']}"
        if owner not in (USER, *ORGANISATIONS):
            raise _Refused(403, f"You have no right to create a model under the namespace {owner}")
        if repo_id in self.hub.repositories:
            raise _Refused(409, "You already created this model repo", url=f"{self.hub.url}/{repo_id}")
        private = asked.get("visibility") == "private" or asked.get("private") is True
        repository = self.hub.repositories[repo_id] = Repository(private)
        repository.commit("main", {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        self.send_json({"url": f"{self.hub.url}/{repo_id}", "name": repo_id, "id": repo_id})

    def model(self, repo_id: str, repository: Repository, rest: list[str]) -> None:
        what, revision = (rest or ["revision"])[0], (rest[1:] or ["main"])[0]
        if self.command == "POST":
            self.must_be_known()
        if what == "revision":
            sha = self.commit_of(repository, revision)
            siblings = [{"rfilename": name} for name in repository.commits[sha]]
            self.send_json({"id": repo_id, "sha": sha, "private": repository.private, "siblings": siblings})
        elif what == "refs":
            self.send_json({"converts": [], "branches": refs(repository.branches), "tags": refs(repository.tags)})
        elif what == "tree":
            files = repository.commits[self.commit_of(repository, revision)]
            if rest[2:]:
                raise _Refused(404, "There are no folders here", "EntryNotFound")
            self.send_json([entry(name, data) for name, data in files.items()])
        elif what == "preupload":
            files = repository.commits[self.commit_of(repository, revision)]
            names = [file["path"] for file in json.loads(self.body)["files"]]
            modes = {name: "lfs" if name.endswith(LARGE) else "regular" for name in names}
            known = {name: entry(name, files[name]) for name in names if name in files}
            oids = {name: found.get("lfs", found)["oid"] for name, found in known.items()}
            files = [
                {"path": name, "uploadMode": modes[name], "shouldIgnore": False, "oid": oids.get(name)}
                for name in names
            ]
            self.send_json({"files": files})
        elif what == "commit":
            self.commit(repo_id, repository, revision)
        elif what == "branch":
            if revision in repository.branches:
                raise _Refused(409, "Reference already exists")
            start = json.loads(self.body or b"{}").get("startingPoint") or "main"
            repository.branches[revision] = self.commit_of(repository, start)
            self.send_json({})
        elif what == "tag":
            repository.tags[json.loads(self.body)["tag"]] = self.commit_of(repository, revision)
            self.send_json({})
        else:
            raise _Refused(404, f"The stub knows no {self.path}")

    def commit(self, repo_id: str, repository: Repository, branch: str) -> None:
        lines = [json.loads(line) for line in self.body.splitlines() if line]
        header, files = lines[0]["value"], dict[str, bytes | None]()
        if header.get("parentCommit") not in (None, repository.branches.get(branch)):
            raise _Refused(412, "A commit has happened since")
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "deletedFile":
                files[value["path"]] = None
                continue
            large = line["key"] == "lfsFile"
            files[value["path"]] = self.hub.stored[value["oid"]] if large else base64.b64decode(value["content"])
        sha = repository.commit(branch, files)
        self.send_json({"commitUrl": f"{self.hub.url}/{repo_id}/commit/{sha}", "commitOid": sha})

    def transfer(self, entry: dict[str, Any]) -> dict[str, Any]:
        known = {"oid": entry["oid"], "size": entry["size"]}
        if entry["oid"] in self.hub.stored:
            return known
        return {**known, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{entry['oid']}", "header": {}}}}

    def file(self, repository: Repository, revision: str, name: str) -> None:
        sha = self.commit_of(repository, revision)
        data = repository.commits[sha].get(name)
        if data is None:
            raise _Refused(404, "Entry not found", "EntryNotFound")
        self.send(data, headers={"X-Repo-Commit": sha, "ETag": f'"{blob_id(data)}"'})


def refs(commits: dict[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "ref": f"refs/{name}", "targetCommit": sha} for name, sha in commits.items()]


def entry(name: str, data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": blob_id(data)}
    if name.endswith(LARGE):
        sha = hashlib.sha256(data).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha}\nsize {len(data)}\n".encode()
        found |= {"oid": blob_id(pointer), "lfs": {"oid": sha, "size": len(data), "pointerSize": len(pointer)}}
    return found
