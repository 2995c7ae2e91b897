"""One of several training processes, which `test_training.py` starts.

Each goes through all scenarios and saves the gradients that it ends up with, and its weights after a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from conftest import make_focus_model
from peft import PeftModel
from torch.nn.parallel import DistributedDataParallel
from training import IGNORED, batch_of, document, gradients, seeded


PROCESSES = 2


@dataclass
class Scenario:
    """Fields of the adapter, and what each process gets."""

    fields: dict[str, Any] = field(default_factory=dict)
    without_labels: tuple[int, ...] = ()  # ranks
    seeds: tuple[int, ...] = (11, 12)  # of the two ranks' spans
    batches: int = 1  # that accumulate
    checkpointing: bool = False
    find_unused_parameters: bool = False

    def model(self) -> PeftModel:
        torch.manual_seed(0)  # low-rank twins start at random
        model = make_focus_model(**{"label_size": 4, **self.fields}).train()
        if self.checkpointing:
            if hasattr(model, "activation_checkpointing_enable"):
                model.activation_checkpointing_enable()
            else:
                model.gradient_checkpointing_enable()
        return model

    def inputs(self, rank: int) -> Iterator[dict[str, Any]]:
        """The batches of a rank."""
        for number in range(self.batches):
            ids = batch_of([document(50, seed=10 * number + rank)])
            labels = torch.full_like(ids, IGNORED) if rank in self.without_labels else ids
            yield {"input_ids": ids, "labels": labels, "generator": seeded(self.seeds[rank] + number)}


SCENARIOS = {
    "a half for each": Scenario(),
    "exact": Scenario({"decoding": "exact"}),
    "low-rank": Scenario({"r": 2}),
    "one has no labels": Scenario(without_labels=(1,)),
    "one has no labels, low-rank": Scenario({"r": 2}, without_labels=(0,)),
    "nobody has labels": Scenario(without_labels=(0, 1)),
    "each draws another loss": Scenario({"loss": "draw"}, seeds=(1, 0)),
    "accumulation": Scenario(batches=3),
    "checkpointing": Scenario(checkpointing=True),
    "unused parameters": Scenario(find_unused_parameters=True),
    "the Trainer's": Scenario(checkpointing=True, find_unused_parameters=True, batches=2),
}


def run(scenario: Scenario, rank: int) -> dict[str, Any]:
    model = scenario.model()
    parallel = DistributedDataParallel(model, find_unused_parameters=scenario.find_unused_parameters)
    counts = []
    for number, batch in enumerate(scenario.inputs(rank)):
        with nullcontext() if number == scenario.batches - 1 else parallel.no_sync():
            output = parallel(**batch)
            output.loss.backward()
        counts.append((output.num_continuation.item(), output.num_repetition.item()))
    found = gradients(model)
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    weights = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    return {"gradients": found, "weights": weights, "counts": counts, "loss": output.loss.item()}


def main(rank: int, processes: int, store: Path, directory: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=processes, timeout=timedelta(seconds=120)
    )
    results = {name: run(scenario, rank) for name, scenario in SCENARIOS.items()}
    torch.save(results, directory / f"{rank}.pt")
    dist.destroy_process_group()
