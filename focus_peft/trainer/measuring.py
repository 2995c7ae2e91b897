"""The losses of a run, as they are logged: in training, and in evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from ..losses.distractors import Distractors
from ..model import FocusModel
from .checkpoints import WholeCheckpoints
from .metrics import LOSS, STEPS, TOKENS, Clock, label_count, measured, peak_memory, summary, zeros


# (model, tokenizer) -> metrics
EvalTask = Callable[[Any, Any], dict[str, float]]


class MeasuredLosses(WholeCheckpoints):
    """A `Trainer` that logs what its losses consist of.

    In evaluation, documents are read one by one, and each has the same weight in `eval_loss`: it depends neither on
    the size of the batches nor on what else is in them. Spans of a document without a seed are drawn from its tokens.
    """

    tuner: FocusModel
    eval_tasks: dict[str, EvalTask]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._interval, self._evaluated = zeros(self.args.device), zeros(self.args.device)
        self._clock = Clock()

    def distractors(self) -> Distractors | None:
        """What stands among the chunks of documents in training."""
        raise NotImplementedError

    def check_loss(self, loss: torch.Tensor, outputs: Mapping[str, Any], seeds: torch.Tensor | None) -> None:
        """Raise an error if the loss of a micro-batch ends the run."""
        raise NotImplementedError

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The model's own loss, as `Trainer.compute_loss`; what it consists of is noted for the logs."""
        inputs = dict(inputs)
        seeds = inputs.pop("sample_seed", inputs.get("sample_seeds"))
        if seeds is not None:
            inputs["sample_seeds"] = seeds
        has_losses = self._has_losses(inputs)
        if has_losses and not model.training:
            loss, outputs = self._evaluate_rows(model, inputs)
            return (loss, outputs) if return_outputs else loss
        if has_losses:
            inputs["local_loss"] = getattr(self.args, "log_local_loss", True)
            inputs["distractors"] = self.distractors()
        # TRL's trainer, between this class and `Trainer`, has a loss of its own
        loss, outputs = Trainer.compute_loss(
            self, model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        if has_losses:
            self.check_loss(loss, outputs, seeds)
            self._interval += measured(outputs, inputs, self.args.device)
        return (loss, outputs) if return_outputs else loss

    def _has_losses(self, inputs: Mapping[str, Any]) -> bool:
        return "labels" in inputs and self.tuner.adapters_enabled

    def _evaluate_rows(self, model: torch.nn.Module, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, Any]:
        """The mean loss of the rows of a batch, each read alone; what they consist of is noted."""
        rows = len(inputs["input_ids"])
        losses, found, outputs = [], [], None
        for row in range(rows):
            alone = {name: value[row : row + 1] for name, value in inputs.items() if isinstance(value, torch.Tensor)}
            alone.setdefault("sample_seeds", _seed_of(alone))
            outputs = model(**alone, local_loss=getattr(self.args, "log_local_loss", True))
            losses.append(outputs["loss"].detach())
            found.append(measured(outputs, alone, self.args.device))
        # without the rows that fill up the last batch
        self._evaluated += self.accelerator.gather_for_metrics(torch.stack(found)).sum(0)
        return torch.stack(losses).mean(), outputs

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, *args: Any, **kwargs: Any
    ) -> Any:
        """As `Trainer.prediction_step`; of documents with labels there are losses only."""
        return super().prediction_step(
            model, inputs, prediction_loss_only or self._has_losses(inputs), *args, **kwargs
        )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            sums = self.accelerator.reduce(self._interval.clone(), reduction="sum").tolist()
            logs.update(summary(sums))
            logs["loss"] = sums[LOSS] / max(1.0, sums[STEPS])
            seconds = self._clock.seconds()
            logs["tokens_per_second"] = sums[TOKENS] / seconds
            logs["label_tokens_per_second"] = label_count(sums) / seconds
            peak = torch.tensor([peak_memory(self.args.device)], dtype=torch.float32, device=self.args.device)
            logs["peak_memory_gb"] = float(self.accelerator.gather(peak).max()) / 1e9
            self._interval.zero_()
            self._clock.restart()
        super().log(logs, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self._clock.stopped():
            return super().evaluate(*args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        self._evaluated.zero_()
        output = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        metrics = cast(dict[str, float], output.metrics)
        sums = self._evaluated.tolist()
        metrics.update({f"{prefix}_{name}": value for name, value in summary(sums).items()})
        if sums[STEPS]:
            metrics[f"{prefix}_loss"] = sums[LOSS] / sums[STEPS]
        if kwargs.get("description") == "Evaluation" and getattr(self.args, "eval_tasks_steps", None) is None:
            metrics.update(self.run_eval_tasks(prefix))
        return output

    def run_eval_tasks(self, prefix: str = "eval") -> dict[str, float]:
        """What the evaluation tasks measure now, as `{prefix}_{name}_{key}`. Random states stay as they are."""
        model = cast(torch.nn.Module, self.model)
        was_training = model.training
        model.eval()
        try:
            with self._clock.stopped(), torch.random.fork_rng(), torch.no_grad():
                return {
                    f"{prefix}_{name}_{key}": value
                    for name, task in self.eval_tasks.items()
                    for key, value in task(model, self.processing_class).items()
                }
        finally:
            model.train(was_training)


def _seed_of(row: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A seed for a batch of one document, made of its tokens: (1,)."""
    ids, mask = row["input_ids"], row.get("attention_mask")
    real = ids if mask is None else ids[mask.bool()]
    digest = hashlib.blake2b(real.cpu().numpy().tobytes(), digest_size=8).digest()
    return torch.tensor([int.from_bytes(digest, "little") >> 1])
