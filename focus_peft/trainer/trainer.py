"""`FocusTrainer`: transformers' `Trainer` for focus adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from ..hub.run_folder import last_checkpoint
from ..losses.distractors import Distractors
from ..model import FocusModel
from .callback import INTERVAL, FocusCallback
from .checkpoints import WholeCheckpoints
from .documents import check_documents
from .metrics import LOSS, STEPS, TOKENS, Clock, is_focus_output, label_count, measured, peak_memory, summary, zeros
from .stopping import Interrupt, LossLimit, TrainingDiverged


# (model, tokenizer) -> metrics
EvalTask = Callable[[Any, Any], dict[str, float]]


class FocusTrainer(WholeCheckpoints):
    """
    Trains a focus adapter with both losses of the paper (section 3.3).

    The loss of a micro-batch is what the model returns (`FocusOutput.loss`): each of the two losses is a mean over its
    own labels, whatever document they come from. The loss of a step, and its gradient, is the plain mean over the
    micro-batches of all processes. So a step over N processes with A accumulated micro-batches is that of one process
    with N·A of them, in the same order. It is that of one large batch where all micro-batches have equally many labels
    of each loss, which is so where every document has room for `label_size` of them. With one document in a
    micro-batch (`per_device_train_batch_size=1`, as in the recipes), every document counts the same however the work
    is divided. The two logged parts are means over labels.

    Batches may have `sample_seeds`, one for each row: spans are then drawn from it and depend on nothing else, so that
    neither the number of processes, nor accumulation, nor a resumed run changes them.

    Logged with the loss, and with the prefix `eval_` in evaluation: `loss_continuation`, `loss_repetition`;
    `loss_local`, `loss_local_continuation` and `loss_local_repetition`, those of the base model with the local window
    alone, on the same labels (in training on those of the logged step only); in training also `tokens_per_second` (of
    documents), `label_tokens_per_second`, and `peak_memory_gb` (of the process that used most; GPU memory, or else
    resident memory).

    Checkpoints are written to a scratch folder and renamed, so that one that was being written when the run was killed
    is never taken for a whole one. Ctrl-C saves one more at the end of the step. A resumed run goes on to the digit.

    Args:
        eval_tasks (`Mapping[str, Callable]`, *optional*):
            Functions `(model, tokenizer) -> dict[str, float]` by name, run with each evaluation, or every
            `eval_tasks_steps`. What they return is logged as `eval_{name}_{key}`. Every process runs them.
        *args, **kwargs: As for `Trainer`. With [`FocusTrainingArguments`] as `args`, more can be set.

    Raises:
        ValueError: if `model` has no focus adapter.

    Example:

    ```python
    from focus_peft import FocusConfig
    from focus_peft.data import DataConfig, DocumentCollator, SourceConfig, prepare
    from focus_peft.trainer import FocusTrainer
    from focus_peft.training_args import FocusTrainingArguments
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(name), FocusConfig(r=64))
    data = prepare(DataConfig(sources=[SourceConfig("texts/*.md")]), AutoTokenizer.from_pretrained(name))
    trainer = FocusTrainer(
        model=model,
        args=FocusTrainingArguments(output_dir="outputs/mine", max_steps=1000),
        train_dataset=data.train,
        data_collator=DocumentCollator(),
    )
    trainer.train(resume_from_checkpoint="auto")
    ```
    """

    def __init__(self, *args: Any, eval_tasks: Mapping[str, EvalTask] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.eval_tasks = dict(eval_tasks or {})
        self.tuner = self._find_tuner()
        self._interval, self._evaluated = zeros(self.args.device), zeros(self.args.device)
        self._clock = Clock()
        self._distractors: Distractors | None = None
        self._losses = LossLimit(self.tuner.facts.vocab_size, getattr(self.args, "max_loss", None))
        self._interrupt = Interrupt()
        self._stops = False
        self.add_callback(FocusCallback(self))

    def _find_tuner(self) -> FocusModel:
        model = self.accelerator.unwrap_model(self.model)
        tuner = getattr(model, "base_model", None)
        if not isinstance(tuner, FocusModel):
            raise ValueError(
                f"`model` must have a focus adapter, got {type(model).__name__}; wrap it with `get_peft_model(model, "
                "FocusConfig())`."
            )
        return tuner

    # Training

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                A checkpoint's folder; True: the last whole one in `output_dir`; "auto": that, or none if there is
                none.

        Raises:
            ValueError: before the first step, if there is no such checkpoint, or no spans can be drawn from the data.
            TrainingDiverged: if a loss or gradient is not finite, or the loss explodes. What was saved before stays.
            KeyboardInterrupt: after Ctrl-C, when a checkpoint was saved.
        """
        checkpoint = self.checkpoint_to_resume(resume_from_checkpoint)
        if self.train_dataset is not None:
            check_documents(self.train_dataset, self.tuner.settings())
        with self._interrupt.listening():
            output = super().train(checkpoint, *args, **kwargs)
        if self._stops and self.state.global_step < self.state.max_steps:
            raise KeyboardInterrupt(
                f"Training was interrupted after step {self.state.global_step}; a checkpoint was saved."
            )
        return output

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """A micro-batch, as `Trainer.training_step`; its share of the step's loss is noted for the logs."""
        loss = super().training_step(*args, **kwargs)
        self._interval[LOSS] += loss
        return loss

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
        if "labels" in inputs and self.tuner.adapters_enabled:
            inputs["local_loss"] = getattr(self.args, "log_local_loss", True) and (
                not model.training or self._will_log()
            )
            if model.training:
                inputs["distractors"] = self.distractors()
        # TRL's trainer, between this class and `Trainer`, has a loss of its own
        loss, outputs = Trainer.compute_loss(
            self, model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        if is_focus_output(outputs):
            found = measured(outputs, inputs, self.args.device)
            if model.training:
                self._check_loss(loss, outputs, seeds)
                self._interval += found
            else:
                # as many equal rows as documents, so that those that fill up the last batch are left out
                rows = len(inputs["input_ids"])
                self._evaluated += self.accelerator.gather_for_metrics((found / rows).expand(rows, -1)).sum(0)
        return (loss, outputs) if return_outputs else loss

    def distractors(self) -> Distractors | None:
        """The distractors of this run, read at the first call. None: without `distractors` in the arguments.

        Raises:
            ValueError: if the training data has too few chunks.
        """
        count = getattr(self.args, "distractors", None)
        if count is not None and self._distractors is None:
            with self._clock.stopped():
                self._distractors = Distractors.of(self.tuner.reader, self.tuner.settings(), self.train_dataset, count)
        return self._distractors

    def _will_log(self) -> bool:
        step = self.state.global_step + 1
        if self.args.logging_strategy != "steps" or not self.state.logging_steps:
            return False
        return step % self.state.logging_steps == 0 or (step == 1 and self.args.logging_first_step)

    def _check_loss(self, loss: torch.Tensor, outputs: Mapping[str, Any], seeds: torch.Tensor | None) -> None:
        problem = self._losses.problem(float(loss.detach()), outputs)
        # all processes stop together, or none
        flags = torch.tensor([[problem is not None, self._interrupt.pressed]], dtype=torch.int32)
        flags = self.accelerator.gather(flags.to(self.args.device)) if self.args.world_size > 1 else flags
        bad = flags[:, 0].nonzero().flatten().tolist()
        if bad:
            who = "" if self.args.world_size == 1 else f" on process {', '.join(map(str, bad))}"
            which = "" if seeds is None or problem is None else f", in samples with the seeds {seeds.tolist()}"
            raise self._diverged(f"{problem or 'the loss diverges'}{who}{which}")
        self._stops = bool(flags[:, 1].any())

    def _diverged(self, what: str) -> TrainingDiverged:
        last = last_checkpoint(cast(str, self.args.output_dir))
        remedy = f"The last good checkpoint is {str(last)!r}" if last else "No checkpoint was saved before"
        return TrainingDiverged(
            f"Training stopped in step {self.state.global_step + 1} (epoch {self.state.epoch or 0:.2f}): {what}. "
            f"{remedy}; try a lower `learning_rate` or more `warmup_steps`, and look at the samples."
        )

    # Logs and evaluation

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            sums = self.accelerator.reduce(self._interval.clone(), reduction="sum").tolist()
            logs.update(summary(sums))
            logs["loss"] = sums[LOSS] / sums[STEPS]
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
        metrics.update({f"{prefix}_{name}": value for name, value in summary(self._evaluated.tolist()).items()})
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

    # Checkpoints

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        with self._clock.stopped():
            # what has been added up since the last log, so that the next one after resuming is the same
            sums = self.accelerator.reduce(self._interval.clone(), reduction="sum").tolist()
            cast(Any, self.state).stateful_callbacks[INTERVAL] = {"args": {}, "attributes": {"sums": sums}}
            super()._save_checkpoint(model, trial)
