"""Reading by several processes of one thread each, which share the chunks (`spread_chunks`)."""

from __future__ import annotations

import json
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes

from .reading import focus


def read(rank: int, folder: str, options: dict[str, Any]) -> None:
    """One of the processes. The first writes down what it measured: each waits for the others, so all take as long."""
    torch.set_num_threads(1)
    processes = options["processes"]
    store = f"file://{Path(folder, 'store')}"
    # a process may be slow to come, and so may be the candidates of many chunks
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=processes, timeout=timedelta(hours=2))
    result = focus({**options, "spread_chunks": processes > 1})
    dist.destroy_process_group()
    if rank == 0:
        Path(folder, "result.json").write_text(json.dumps(result))


def focus_of_processes(options: dict[str, Any]) -> dict[str, Any]:
    """`focus` in so many processes; memory is that of the first."""
    with tempfile.TemporaryDirectory() as folder:
        # a fork has imported everything; nothing was computed before it
        start_processes(read, args=(folder, options), nprocs=options["processes"], start_method="fork")
        result: dict[str, Any] = json.loads(Path(folder, "result.json").read_text())
    return result
