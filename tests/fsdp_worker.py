"""
One of several processes that divide a model's weights among them. `test_distributed.py` starts them with torchrun:

    fsdp_worker.py BASE RESULTS_FILE

Each reads documents of its own, some of them too short for spans; the first saves the mean gradients, put together.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.distributed as dist
from runs import Documents, loaded
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers.modeling_layers import GradientCheckpointingLayer

from focus_peft.data.collator import DocumentCollator


# one document is too short for spans, some are too long for the teacher; they have one to nine chunks, three to a pass
LENGTHS = (2, 100, 17)
FIELDS = {"label_size": 4, "distill_weight": 0.5, "chunk_batch_size": 3}


def batches(rank: int) -> list[dict[str, Any]]:
    rows = Documents(6, *LENGTHS)
    return [DocumentCollator()([rows[number]]) for number in range(rank, 6, 2)]


def main(base: str, file: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = loaded(base, FIELDS).train()
    for layer in [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    losses = []
    for batch in batches(dist.get_rank()):
        loss = model(**batch).loss
        loss.backward()
        losses.append(loss.item())
    gradients = {
        name: p.grad.full_tensor() for name, p in model.named_parameters() if p.requires_grad and p.grad is not None
    }
    everybodys = [None] * dist.get_world_size()
    dist.all_gather_object(everybodys, losses)
    if dist.get_rank() == 0:
        torch.save({"gradients": gradients, "losses": everybodys}, file)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
