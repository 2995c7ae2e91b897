"""Documents that were uploaded: their texts, and what was read of them, within a limit of memory."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..memory.memory import Memory
from ..memory.progress import telling_progress
from ..saving import sync_names, write_whole
from .errors import ApiError
from .metrics import Metrics


TEXT, ABOUT, READ = "text.txt", "about.json", "memory"
# A document's folder has its id as a name, and nothing of a client's is in it
ID = re.compile(r"file-[0-9a-f]{32}")


@dataclass
class Document:
    """A document that was uploaded.

    Attributes:
        id (`str`): What requests call it.
        name (`str`): What its owner called it. It is told again, and names no file.
        bytes (`int`): Of its text.
        created (`int`): Seconds since 1970.
        progress (`float`): The share of it that has been read.
        tokens (`int`): Of the document, once they are counted.
        end (`list[int]`): Its last tokens, as many as half of a local window at most. They are not in the memory, but
            stand before each prompt: adapters are trained with a local window, and read badly with a short question
            alone in it.
        problem (`str`, *optional*): Why it cannot be read.
        memory (`Memory`, *optional*): What was read, while it is held.
        used (`float`): When it was asked about, on `time.monotonic`.
        users (`int`): Batches that ask about it now.
    """

    id: str
    name: str
    bytes: int
    created: int
    progress: float = 0.0
    tokens: int = 0
    end: list[int] = field(default_factory=list)
    problem: str | None = None
    memory: Memory | None = None
    used: float = 0.0
    users: int = 0
    ready: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def status(self) -> str:
        """As OpenAI has it: "uploaded", then "processed" or "error"."""
        if self.problem is not None:
            return "error"
        return "processed" if self.ready.is_set() else "uploaded"

    def check(self) -> None:
        """Raise an ApiError if it cannot be asked about."""
        if self.problem is not None:
            raise ApiError(400, f"The file {self.id!r} cannot be asked about: {self.problem}.", "document")


class DocumentStore:
    """All documents of a server.

    Texts are on the disk before an upload is answered, and memories as soon as they are read. With a folder, both are
    there when the server starts again. Memories that were not used for longest are let go above the limit, and come
    back from the disk when somebody asks.

    Args:
        model (`PeftModel`): Reads them.
        tokenizer: The model's.
        folder (`Path`, *optional*): Where they are kept. None: they go with the process.
        gigabytes (`float`): Room for memories, in GiB.
        storage (`str`): Where memories are, as in `FocusConfig`.
        metrics (`Metrics`): Counts them.

    Raises:
        OSError: if the folder cannot be written.
    """

    def __init__(
        self, model: Any, tokenizer: Any, folder: Path | None, gigabytes: float, storage: str, metrics: Metrics
    ) -> None:
        self.model, self.tokenizer, self.storage, self.metrics = model, tokenizer, storage, metrics
        self.limit = int(gigabytes * 2**30)
        self._goes = folder is None
        self.folder = Path(tempfile.mkdtemp(prefix="focus-documents-")) if folder is None else folder
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.folder):
            pass
        self._lock = threading.Lock()
        self._documents: dict[str, Document] = {}
        self._reads = ThreadPoolExecutor(1, "read")  # reading is all work: two at once take as long
        for place in sorted(self.folder.iterdir()):
            if ID.fullmatch(place.name):
                self._find(place)
        self._count()

    def _find(self, place: Path) -> None:
        """Take up a document that an earlier process left."""
        about = place / ABOUT
        if not about.is_file():  # its upload was never answered
            shutil.rmtree(place, ignore_errors=True)
            return
        document = self._documents[place.name] = Document(place.name, **json.loads(about.read_text(encoding="utf-8")))
        if (place / READ).is_dir():
            document.progress = 1.0
            document.ready.set()
        else:
            self._reads.submit(self._read, document)

    # What clients do

    def add(self, name: str, text: str) -> Document:
        """Keep a text, and read it in the background.

        Raises:
            ApiError: if there is no room on the disk.
        """
        data = text.encode()
        document = Document(f"file-{uuid.uuid4().hex}", name, len(data), int(time.time()))
        place = self.folder / document.id
        try:
            place.mkdir()
            write_whole(place / TEXT, data)
            self._tell(document)  # last: without it, the document does not exist
            sync_names(self.folder)
        except OSError as error:
            shutil.rmtree(place, ignore_errors=True)
            message = f"The document cannot be kept: {error.strerror}."
            raise ApiError(507, message, code="no_room") from error
        with self._lock:
            self._documents[document.id] = document
        self._count()
        self._reads.submit(self._read, document)
        return document

    def get(self, id: str) -> Document:
        """A document.

        Raises:
            ApiError: if there is none of that id.
        """
        with self._lock:
            document = self._documents.get(id)
        if document is None:
            raise ApiError(404, f"There is no file {id!r}; upload it again.", "file_id", "file_not_found")
        return document

    def list(self) -> list[Document]:
        """All documents, the newest first."""
        with self._lock:
            return sorted(self._documents.values(), key=lambda document: -document.created)

    def text(self, id: str) -> str:
        return (self.folder / self.get(id).id / TEXT).read_bytes().decode()

    def delete(self, id: str) -> None:
        """Forget a document. Those who are being answered about it get their answer."""
        document = self.get(id)
        with self._lock:
            self._documents.pop(id, None)
        document.problem = "it was deleted"
        document.ready.set()
        with document.lock:  # nothing of it is being written
            document.memory = None
        shutil.rmtree(self.folder / document.id, ignore_errors=True)
        self._count()

    @contextlib.contextmanager
    def held(self, id: str | None) -> Iterator[tuple[Memory | None, Sequence[int]]]:
        """Within the context, a document's memory is there, and its end. It is waited for while it is being read.

        Raises:
            ApiError: if it cannot be read, or was deleted.
        """
        if id is None:
            yield None, []
            return
        document = self.get(id)
        document.ready.wait()
        with document.lock:
            document.check()
            if document.memory is None:
                place = self.folder / document.id / READ
                document.memory = self.model.load_memory(place, tokenizer=self.tokenizer, storage=self.storage)
            memory = document.memory
            document.users += 1
            document.used = time.monotonic()
        try:
            self._make_room()
            yield memory, document.end
        finally:
            with document.lock:
                document.users -= 1
                document.used = time.monotonic()
            self._make_room()

    def close(self) -> None:
        """Stop reading. Without a folder, all documents go."""
        for document in self.list():
            if document.status != "processed":
                document.problem = document.problem or "the server is shutting down"
            document.ready.set()
        self._reads.shutdown(wait=True, cancel_futures=True)
        if self._goes:
            shutil.rmtree(self.folder, ignore_errors=True)

    # Reading

    def _read(self, document: Document) -> None:
        try:
            if document.problem is not None:
                return
            ids = self.tokenizer(self.text(document.id), return_tensors="pt", verbose=False).input_ids
            document.tokens = tokens = ids.shape[1]
            held = tokens - min(self.model.settings().sizes.local, tokens) // 2
            document.end = ids[0, held:].tolist()
            memory = self._encode(document, ids[:, :held])
            with document.lock:
                document.check()
                self._tell(document)  # first: where there is a folder of the memory, all of this is known
                memory.save(self.folder / document.id / READ, tokenizer=self.tokenizer)
                document.memory, document.used = memory, time.monotonic()
            document.progress = 1.0
            self._make_room()
        except Exception as error:
            document.problem = document.problem or (str(error).rstrip(".") or type(error).__name__)
        finally:
            document.ready.set()

    def _encode(self, document: Document, ids: Any) -> Memory:
        """Read the ids; how far that is can be seen meanwhile."""

        def tell(share: float) -> None:
            document.progress = share
            if document.problem is not None:
                raise InterruptedError(document.problem)

        with telling_progress(self.model, ids.shape[1], tell):
            return self.model.encode(ids, progress=False, storage=self.storage)

    def _make_room(self) -> None:
        """Let memories go that nobody uses, the one first that was not used for longest."""
        with self._lock:
            # each is looked at once: one that is deleted meanwhile loses its own
            pairs = [(document, document.memory) for document in self._documents.values()]
            held = [(document, memory) for document, memory in pairs if memory is not None]
            total = sum(memory.nbytes for _, memory in held)
            for document, memory in sorted(held, key=lambda pair: pair[0].used):
                if total <= self.limit:
                    break
                if document.lock.acquire(blocking=False):  # one that comes back just now stays
                    try:
                        if document.users == 0:
                            total -= memory.nbytes
                            document.memory = None
                    finally:
                        document.lock.release()
            self.metrics.memory_bytes.set(total)

    def _tell(self, document: Document) -> None:
        about = {name: getattr(document, name) for name in ("name", "bytes", "created", "tokens", "end")}
        write_whole(self.folder / document.id / ABOUT, json.dumps(about))

    def _count(self) -> None:
        self.metrics.documents.set(len(self._documents))
