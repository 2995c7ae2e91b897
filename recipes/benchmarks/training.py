"""One training step: with the losses of focus_peft, and with the graph kept through all chunk tokens (`naive.py`)."""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.naive import naive_loss
from focus_peft.losses.documents import Document
from focus_peft.losses.objectives import focus_loss
from focus_peft.losses.sampling import Sample, Span
from focus_peft.trainer.metrics import peak_memory

from .setting import document, load, with_peak


def loss_of_quarters(tuner: Any, ids: list[int], labels: int, naive: bool) -> torch.Tensor:
    """Both losses of a document, with chunks and local windows of a quarter of it, the largest there are.

    `naive`: with the graph kept through all chunk tokens, which computes the same.
    """
    quarter = len(ids) // 4
    continuation, repetition = (Span(start, quarter - labels, labels) for start in (3 * quarter, quarter))
    sample = Sample(3 * quarter, quarter, continuation, repetition)
    if naive:
        return naive_loss(tuner, ids, sample)
    loss: Any = focus_loss(tuner.reader, tuner.settings(), [Document(ids, ids, sample)]).loss
    return loss


def step(options: dict[str, Any]) -> dict[str, Any]:
    """A step of `loss_of_quarters`. For comparison, its gradients are saved where the option `gradients` says."""
    decoding, labels = options["decoding"], options["labels"]
    quarter = options["tokens"] // 4
    sizes = {"chunk_size": quarter, "local_size": quarter, "prompt_size": min(512, quarter)}
    model, tokenizer = load(options, r=options["r"], decoding=decoding, label_size=labels, **sizes)
    ids = document(tokenizer, options["tokens"])[0].tolist()
    few = ids[: 4 * max(2 * labels, quarter // 8)]
    loss_of_quarters(model.base_model, few, labels, options["naive"]).backward()  # warm-up
    model.zero_grad(set_to_none=True)
    before = peak_memory(torch.device("cpu"))
    begin = time.perf_counter()
    loss = loss_of_quarters(model.base_model, ids[: 4 * quarter], labels, options["naive"])
    loss.backward()
    seconds = time.perf_counter() - begin
    of_step = peak_memory(torch.device("cpu")) - before
    if "gradients" in options:
        gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
        torch.save(torch.cat(gradients), options["gradients"])
    return with_peak(
        {
            "loss": round(float(loss.detach()), 5),
            "labels": 2 * labels,
            "seconds": round(seconds, 3),
            "memory_of_the_step_gb": round(of_step / 1e9, 2),
        }
    )
