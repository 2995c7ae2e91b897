"""What tests of data do in processes of their own."""

from __future__ import annotations

import sys
from pathlib import Path

import torch.distributed as dist


def prepare_together(rank: int, processes: int, folder: Path, texts: Path) -> None:
    """One of several processes that prepare the same data: print the order of its samples and their seeds."""
    from test_data import TOKENIZER

    from focus_peft.data import DataConfig, SourceConfig, prepare

    # a file instead of a port, which another test might take
    dist.init_process_group("gloo", f"file://{folder / 'store'}", rank=rank, world_size=processes)
    config = DataConfig([SourceConfig(str(texts))], min_tokens=8, held_out=2, cache_dir=str(folder / "cache"))
    data = prepare(config, TOKENIZER)
    with open(folder / f"{rank}.txt", "w") as file:
        for dataset in (data.train, data.held_out):
            for index in range(len(dataset)):
                print(dataset[index]["sample_seed"], sum(dataset[index]["input_ids"]), file=file)
    dist.destroy_process_group()


def be_killed_while_writing(directory: Path, path: Path) -> None:
    from test_data_tokens import Killed, write_until_stopped

    write_until_stopped(Killed, directory, path)


def say_what_focus_peft_imported() -> None:
    import focus_peft  # noqa: F401

    print([name for name in ("datasets", "focus_peft.data") if name in sys.modules])


def read_without_datasets(folder: Path) -> None:
    sys.modules["datasets"] = None  # type: ignore[assignment]
    from test_data_tokens import prepared, write_texts

    prepared(folder, write_texts(folder, 2))
