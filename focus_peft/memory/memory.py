"""`Memory`: the encoded chunks of some documents, read once and asked many times."""

from __future__ import annotations

import copy
import os
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..kv.files import copy_states, describe_states, read_states, write_states
from ..kv.storage import make_store
from ..kv.store import runs
from ..passes.chunking import cut
from ..passes.frames import Frames
from ..passes.inputs import ChunkRow
from ..passes.reader import Reader
from .files import STATES_FILE, SavedMemory, tokenizer_fingerprint, write_memory
from .ranks import Ranks


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..frozen.fingerprint import Fingerprint


class Memory:
    """The encoded chunks of one or more documents: what `model.encode` returns.

    The chunks hold what the frozen model computed and no trainable weight, so one memory serves every adapter with the
    same `chunk_size`. Behind each chunk its rows have room for dynamic prompts: what is asked is written there and
    never outlives its question.

    Attributes:
        documents (`list[list[int]]`): The token ids of each document.
        chunk_size (`int`): Tokens in a chunk; the last of a document may be shorter.
        fingerprint (`Fingerprint`): Of the model that read the documents.
        storage (`str`): Where the states are kept: "device", "cpu", "int8" or "disk" (docs/memory.md).
        storage_dir (`str`, *optional*): Where "disk" has its files. None: the system's directory for temporary files.
        ranks (`Ranks`): The processes that hold the chunks (docs/memory.md).

    Example:

    ```python
    import focus_peft
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(name), "hub/smollm2-135m-instruct-focus")

    memory = model.encode(tokenizer(open("README.md").read(), return_tensors="pt").input_ids)
    print(f"{memory.num_tokens} tokens in {memory.num_chunks} chunks")
    for question in ("What is a chunk?", "What is a candidate?"):
        inputs = tokenizer(f"Question: {question} Answer:", return_tensors="pt")
        output = model.generate(**inputs, memory=memory, max_new_tokens=20)
    memory.save("readme.memory", tokenizer=tokenizer)
    memory = model.load_memory("readme.memory", tokenizer=tokenizer)
    ```
    """

    def __init__(
        self,
        documents: list[list[int]],
        chunk_size: int,
        frames: Frames,
        fingerprint: Fingerprint,
        room: int = 0,
        storage: str = "device",
        storage_dir: str | None = None,
        ranks: Ranks | None = None,
        old: Memory | None = None,
    ) -> None:
        self.documents = documents
        self.chunk_size = chunk_size
        self.frames = frames
        self.fingerprint = fingerprint
        self.rows = [
            ChunkRow(number, index, len(chunk))
            for number, ids in enumerate(documents)
            for index, chunk in enumerate(cut(ids, chunk_size))
        ]
        columns = max((row.length for row in self.rows), default=0) + room
        self.ranks = ranks or Ranks()
        self._share(old)
        self.storage_dir = storage_dir
        self.store = make_store(storage, len(self._held), columns, storage_dir)
        self.lock = threading.RLock()
        self._tenant: weakref.ref[Any] | None = None

    def _share(self, old: Memory | None) -> None:
        """Give the chunks to the ranks; those that `old` has spread already stay where they are."""
        kept = {} if old is None or old.ranks.size == 1 else {_key(row): row.rank for row in old.rows}
        there, new = (
            [row for row in self.rows if _key(row) in kept],
            [row for row in self.rows if _key(row) not in kept],
        )
        for row in there:
            row.rank = kept[_key(row)]
        self.ranks.share(new, there)
        self._held = self.ranks.own(self.rows)  # the rows of the store

    @property
    def num_documents(self) -> int:
        return len(self.documents)

    @property
    def num_chunks(self) -> int:
        """Chunks of all documents."""
        return len(self.rows)

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return sum(map(len, self.documents))

    @property
    def storage(self) -> str:
        return self.store.storage

    @property
    def nbytes(self) -> int:
        """Bytes of storage in this process, on disk too, the room for prompts included."""
        return self.store.nbytes

    @property
    def device(self) -> torch.device | None:
        """Where the states are (of the first layer, if the model is spread over devices). None: no chunks.

        With the storages "cpu" and "disk" that is the CPU, wherever the model is.
        """
        return self.store.device

    def chunks_of(self, document: int) -> int:
        """The number of chunks of a document."""
        return sum(row.document == document for row in self.rows)

    def starts(self) -> list[int]:
        """The position of the first token of each chunk that this process holds."""
        return [self.frames.chunk_start(row.index, row.length) for row in self._held]

    def read(self, reader: Reader, batch_size: int | None, progress: bool, old: Memory | None = None) -> None:
        """Encode all chunks of this process, but for those that `old`, a memory of the documents' beginnings, already
        holds.
        """
        self.ranks.check_alike("the documents are", (self.documents, old is not None and old.documents))
        every = [chunk for ids in self.documents for chunk in cut(ids, self.chunk_size)]
        chunks = [chunk for row, chunk in zip(self.rows, every) if self.ranks.holds(row)]
        todo = list(range(len(chunks)))
        if old is not None and old.rows:
            held = {_key(row): number for number, row in enumerate(old._held)}
            copied = [(n, held[key]) for n in todo if (key := _key(self._held[n])) in held]
            with old.lock:
                copy_states(old.store, self.store, copied, [self._lengths[new] for new, _ in copied])
            todo = sorted(set(todo) - {new for new, _ in copied})
        starts = self.starts()
        for first, last in runs(todo):
            reader.read_chunks(self.store, first, chunks[first:last], starts[first:last], batch_size, progress)

    @property
    def _lengths(self) -> list[int]:
        return [row.length for row in self._held]

    def lease(self, tenant: Any) -> bool:
        """Give the room for prompts to `tenant`. Returns False if somebody else has written there since it last had
        it.
        """
        kept = self._tenant is not None and self._tenant() is tenant
        self._tenant = weakref.ref(tenant)
        return kept

    def to(self, device: torch.device | str) -> Memory:
        """Move the states to a device, in place, and return self. With the storages "cpu" and "disk" they stay where
        they are.

        Raises:
            ValueError: for a type, which is the model's.
        """
        if isinstance(device, torch.dtype):
            raise ValueError(
                f"`device` is {device}, but a memory keeps the type of the model that read it; cast the model and "
                "call `encode` again."
            )
        with self.lock:
            self.store.to(device)
            self._tenant = None
        return self

    def save(self, directory: str | os.PathLike, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        """Save to a directory: `memory.safetensors` in the model's type, and `memory.json` with sizes, ids and
        fingerprints.

        States of 8 bits are saved as what they stand for, so that any storage can load them; loaded into 8 bits again,
        they are the same.

        Args:
            directory (`str` or `os.PathLike`): Must not hold a memory yet.
            tokenizer (*optional*): Its fingerprint is saved too, and compared by `load_memory`.

        Raises:
            FileExistsError: if `directory` exists and is not empty.
            ValueError: if the chunks are spread over several processes.
            OSError: if writing fails, for example on a full disk; nothing half-written is left behind.
        """
        if self.ranks.size > 1:
            raise ValueError(
                f"The memory is spread over {self.ranks.size} processes (`spread_chunks`), so none of them can save "
                "all of it; encode with `spread_chunks=False` in one process, save that, and load it with "
                "`spread_chunks=True`."
            )
        with self.lock:
            description = {
                "documents": self.documents,
                "chunk_size": self.chunk_size,
                "nominal": self.frames.nominal,
                "learned": self.frames.learned,
                "offset": self.frames.offset,
                "model": self.fingerprint.to_dict(),
                "tokenizer": None if tokenizer is None else tokenizer_fingerprint(tokenizer),
                "states": describe_states(self.store, max(self._lengths, default=0)),
            }
            write_memory(directory, description, lambda file: write_states(file, self.store, self._lengths))

    def load_states(self, directory: Path, saved: SavedMemory, device: torch.device | str) -> None:
        """Fill an empty memory with what `save` wrote of it.

        Raises:
            ValueError, SafetensorError: if the states are not those that are described.
        """
        self.ranks.check_alike("the documents are", self.documents)
        lengths = [row.length for row in self.rows]
        first = self.rows.index(self._held[0]) if self._held else 0  # what one process holds are neighbors
        described = saved.states, saved.digests
        read_states(directory / STATES_FILE, self.store, lengths, described, device, first)

    # A copy has its own states, and nobody has asked it yet

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("lock", "_tenant")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, lock=threading.RLock(), _tenant=None)

    def __copy__(self) -> Memory:
        return copy.deepcopy(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Memory:
        copied = type(self).__new__(type(self))
        with self.lock, torch.inference_mode(False), torch.no_grad():  # it may be written to outside of the caller's
            copied.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return copied

    def __repr__(self) -> str:
        return (
            f"Memory({self.num_documents} documents, {self.num_tokens} tokens, {self.num_chunks} chunks of "
            f"{self.chunk_size}, {self.nbytes / 2**20:.1f} MiB, storage {self.storage!r})"
        )


def _key(row: ChunkRow) -> tuple[int, int, int]:
    return row.document, row.index, row.length
