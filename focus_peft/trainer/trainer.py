"""`FocusTrainer`: transformers' `Trainer` for focus adapters."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch.utils.data import Sampler, SequentialSampler
from transformers import DataCollatorWithPadding, default_data_collator
from transformers.trainer_utils import TrainOutput

from ..data.collator import DocumentCollator
from ..hub.run_folder import is_in, last_checkpoint, occupied
from ..hub.run_options import check_options
from ..losses.distractors import Distractors
from ..model import FocusModel
from .callback import INTERVAL, AlreadyFinished, FocusCallback
from .checks import check_run
from .documents import check_documents
from .identity import first_epoch, identity_of
from .measuring import EvalTask, MeasuredLosses
from .stopping import Interrupt, LossLimit, TrainingDiverged, TrainingInterrupted


logger = logging.getLogger(__name__)

# Functions that `Trainer` takes, and why they cannot work here
REFUSED_FUNCTIONS = {
    "compute_loss_func": "the two losses of the paper are computed by the model",
    "compute_metrics": "evaluation computes losses on spans, and no logits of documents; measure with `eval_tasks`",
    "model_init": "a run is tied to the one model that is given as `model`",
}


class FocusTrainer(MeasuredLosses):
    """
    Trains a focus adapter with both losses of the paper (section 3.3).

    The loss of a micro-batch is what the model returns (`FocusOutput.loss`): each of the two losses is a mean over its
    own labels, whatever document they come from. The loss of a step, and its gradient, is the plain mean over the
    micro-batches of all processes. So a step over N processes with A accumulated micro-batches is that of one process
    with N·A of them, in the same order. It is that of one large batch where all micro-batches have equally many labels
    of each loss, which is so where every document has room for `label_size` of them. With one document in a
    micro-batch (`per_device_train_batch_size=1`, as in the recipes), every document counts the same however the work
    is divided. The two logged parts are means over labels. A micro-batch without any labels teaches nothing, and is
    left out of the logged `loss`. In evaluation every document counts the same, whatever the size of the batches.

    Batches may have `sample_seeds`, one for each row: spans are then drawn from it and depend on nothing else, so that
    neither the number of processes, nor accumulation, nor a resumed run changes them.

    Logged with the loss, and with the prefix `eval_` in evaluation: `loss_continuation`, `loss_repetition`;
    `loss_local`, `loss_local_continuation` and `loss_local_repetition`, those of the base model with the local window
    alone, on the same labels; in training also `tokens_per_second` (of
    documents), `label_tokens_per_second`, and `peak_memory_gb` (of the process that used most; GPU memory, or else
    resident memory).

    Checkpoints are written to a scratch folder and renamed, so that one that was being written when the run was killed
    is never taken for a whole one. Ctrl-C and SIGTERM save one more at the end of the step. A resumed run goes on to
    the digit. A checkpoint of another run, with other data, arguments, adapter or base model, is refused, and one that
    ends its run is not trained on.

    Args:
        eval_tasks (`Mapping[str, Callable]`, *optional*):
            Functions `(model, tokenizer) -> dict[str, float]` by name, run with each evaluation, or every
            `eval_tasks_steps`. What they return is logged as `eval_{name}_{key}`. Every process runs them.
        depends_on (`Mapping[str, Any]`, *optional*):
            What else checkpoints depend on, such as where the first step starts from: values of JSON by name. A run
            that is resumed must have the same.
        *args, **kwargs: As for `Trainer`. With [`FocusTrainingArguments`] as `args`, more can be set.

    Raises:
        ValueError: if `model` has no focus adapter, or an argument would be without effect or could not work.

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

    def __init__(
        self,
        *args: Any,
        eval_tasks: Mapping[str, EvalTask] | None = None,
        depends_on: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        given = kwargs.get("args", args[1] if len(args) > 1 else None)
        if given is not None:
            check_options(given)  # before documents are packed
        super().__init__(*args, **kwargs)
        for name, reason in REFUSED_FUNCTIONS.items():
            if getattr(self, name, None) is not None:
                raise ValueError(f"`{name}` was given, but {reason}; leave it out.")
        self.eval_tasks, self.depends_on = dict(eval_tasks or {}), dict(depends_on or {})
        self.tuner = self._find_tuner()
        if self.data_collator is default_data_collator or isinstance(self.data_collator, DataCollatorWithPadding):
            self.data_collator = DocumentCollator()  # the Trainer's own choices cannot batch documents
        self._distractors: Distractors | None = None
        self._losses = LossLimit(self.tuner.facts.vocab_size, getattr(self.args, "max_loss", None))
        self._interrupt = Interrupt()
        self._stops = False
        self.resumed_from: str | None = None
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

    def check(self) -> None:
        """Raise a ValueError for what would end the run later, or without its being what was asked for.

        `train` calls it before the first step.
        """
        check_run(self)
        check_documents(self.train_dataset, self.tuner.settings())

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                A checkpoint's folder; True: the last whole one in `output_dir`; "auto": that, or none if there is
                none.

        Raises:
            ValueError: before the first step, if there is no such checkpoint, it is of another run, another training
                runs in `output_dir`, or no spans can be drawn from the data.
            TrainingDiverged: if a loss or gradient is not finite, or the loss explodes. What was saved before stays.
            TrainingInterrupted: after Ctrl-C or SIGTERM, when a checkpoint was saved. It is a KeyboardInterrupt.
        """
        checkpoint = self.checkpoint_to_resume(resume_from_checkpoint)
        self.check()
        folder = str(self.args.output_dir)
        with occupied(folder) if self.is_world_process_zero() else contextlib.nullcontext():
            self.identity = identity_of(self)
            if checkpoint is not None and not self.identity.check(checkpoint):
                logger.warning(
                    "The checkpoint %r does not say what it is of, and is taken for this run's.", checkpoint
                )
            if checkpoint is None or not is_in(folder, checkpoint):
                self.start_anew()
            self.resumed_from = checkpoint
            with self._interrupt.listening():
                try:
                    output = super().train(checkpoint, *args, **kwargs)
                except AlreadyFinished:
                    output = self._end_again()
                finally:
                    self.give_limit_back()
        if self._stops and self.state.global_step < self.state.max_steps:
            raise TrainingInterrupted(
                f"Training was interrupted after step {self.state.global_step}; a checkpoint was saved.",
                self._interrupt.number,
            )
        return output

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Sampler | None:
        """Documents in their dataset's own order, where it has one for each epoch (`set_epoch`)."""
        rows = self.train_dataset if not args else args[0]
        shuffles = getattr(self.args, "train_sampling_strategy", "random") == "random"
        shuffles = shuffles and not getattr(self.args, "group_by_length", False)  # its name before transformers 5
        if shuffles and hasattr(rows, "set_epoch") and hasattr(rows, "__len__"):
            return SequentialSampler(cast(Any, rows))
        return super()._get_train_sampler(*args, **kwargs)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns = cast(list[str], self._signature_columns)
        # what the collator takes, and the wrapped model does not name
        columns += [name for name in ("sample_seed", "evidence") if name not in columns]

    def _end_again(self) -> TrainOutput:
        """What comes after the last step, for a run that was finished before."""
        logger.warning("The run in %r is finished, at step %d.", self.args.output_dir, self.state.global_step)
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        self.is_in_train = False
        return TrainOutput(self.state.global_step, 0.0, {})

    def distractors(self) -> Distractors | None:
        """The distractors of this run, of the data's first epoch, read at the first call. None: without `distractors`
        in the arguments.

        Raises:
            ValueError: if the training data has too few chunks.
        """
        count = getattr(self.args, "distractors", None)
        if count is not None and self._distractors is None:
            with self._clock.stopped(), first_epoch(self.train_dataset):
                self._distractors = Distractors.of(self.tuner.reader, self.tuner.settings(), self.train_dataset, count)
        return self._distractors

    def check_loss(self, loss: torch.Tensor, outputs: Mapping[str, Any], seeds: torch.Tensor | None) -> None:
        """Raise `TrainingDiverged` if the loss of a micro-batch ends the run; note whether a signal came."""
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

    # Checkpoints

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        with self._clock.stopped():
            # what has been added up since the last log, so that the next one after resuming is the same
            sums = self.accelerator.reduce(self._interval.clone(), reduction="sum").tolist()
            ended = self.control.should_training_stop and not self._stops
            attributes = {"sums": sums, "ended": ended and self.state.global_step < self.state.max_steps}
            attributes |= {"first_loss": self._losses.first, "recent_losses": list(self._losses.recent)}
            cast(Any, self.state).stateful_callbacks[INTERVAL] = {"args": {}, "attributes": attributes}
            super()._save_checkpoint(model, trial)
