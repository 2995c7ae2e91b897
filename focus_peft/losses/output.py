"""`FocusOutput`: what a model returns for a batch with labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


OTHER_TRAINERS = (
    "The loss is to be computed from logits, as TRL's `SFTTrainer`, `DPOTrainer`, `GRPOTrainer` and others do, but "
    "logits of chunked inputs carry no graph: give `labels`, whose losses are the adapter's own, or train with "
    "`FocusTrainer`, or, with TRL, `FocusSFTTrainer`."
)


@dataclass
class FocusOutput(ModelOutput):
    """What `model(input_ids, labels=...)` returns. All are scalars.

    Attributes:
        loss (`torch.FloatTensor`):
            (1 − λ)·(w_c·`loss_continuation` + w_r·`loss_repetition`) + λ·`loss_distillation` + w·`loss_choice`, where
            λ is `distill_weight` and w is `choice_weight`. With `loss="draw"`, where weights are odds, the mean over
            all labels drawn stands in place of the weighted sum.
        loss_continuation, loss_repetition (`torch.FloatTensor`):
            Mean cross-entropy over the labels of each loss; 0 where there are none.
        loss_distillation (`torch.FloatTensor`, *optional*):
            Mean KL(base model reading everything ‖ adapter), summed like the losses. Where memory and window do not
            fit the base model, cross-entropy stands in for it. Only with `distill_weight`.
        num_continuation, num_repetition (`torch.LongTensor`): How many labels each had.
        loss_local_continuation, loss_local_repetition (`torch.FloatTensor`, *optional*):
            Mean cross-entropy of the base model on the same labels, given the same local windows and no candidates.
            Only with `local_loss=True`.
        loss_choice (`torch.FloatTensor`, *optional*):
            Mean cross-entropy of the attention over chunks against those that hold the label. Only with
            `choice_weight`.
        num_choice (`torch.LongTensor`, *optional*): For how many labels it is known which chunks do.

    Example:

    ```python
    import torch
    from focus_peft import FocusConfig
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")
    model = get_peft_model(base, FocusConfig(r=16, chunk_size=128, local_size=128, prompt_size=32))
    document = torch.randint(3, 250, (1, 400))
    output = model(document, labels=document)
    output.loss.backward()
    print(output.loss_continuation, output.loss_repetition)
    ```
    """

    loss: torch.Tensor | None = None
    loss_continuation: torch.Tensor | None = None
    loss_repetition: torch.Tensor | None = None
    loss_distillation: torch.Tensor | None = None
    num_continuation: torch.Tensor | None = None
    num_repetition: torch.Tensor | None = None
    loss_local_continuation: torch.Tensor | None = None
    loss_local_repetition: torch.Tensor | None = None
    loss_choice: torch.Tensor | None = None
    num_choice: torch.Tensor | None = None

    @property
    def logits(self) -> torch.Tensor:
        """Not there.

        Raises:
            AttributeError: always, with what to do instead.
        """
        raise AttributeError(OTHER_TRAINERS)
