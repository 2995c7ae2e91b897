"""
One of several processes that prepare the same data. `test_data_mixture.py` starts them:

    RANK=0 WORLD_SIZE=2 python data_worker.py FILE CACHE_DIRECTORY

Each prints the order of its samples and their seeds.
"""

from __future__ import annotations

import os
import sys

import torch.distributed as dist
from test_data import TOKENIZER

from focus_peft.data import DataConfig, SourceConfig, prepare


def main(path: str, cache_dir: str) -> None:
    rank, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    # a file instead of a port, which another test might take
    dist.init_process_group("gloo", f"file://{os.environ['FOCUS_TEST_STORE']}", rank=rank, world_size=processes)
    data = prepare(DataConfig([SourceConfig(path)], min_tokens=8, held_out=2, cache_dir=cache_dir), TOKENIZER)
    for dataset in (data.train, data.held_out):
        for index in range(len(dataset)):
            print(dataset[index]["sample_seed"], sum(dataset[index]["input_ids"]))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
