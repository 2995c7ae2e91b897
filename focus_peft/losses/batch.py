"""A training batch as a model gets it, what is drawn from it, and gradients for everyone who waits for one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..config import IGNORE
from ..frozen.weights import is_plain
from ..layer import TwinLayer
from ..passes.distributed import is_distributed
from ..passes.ids import check_ids, check_vocabulary, real_tokens, unpad
from ..passes.settings import Settings
from .documents import Document
from .output import FocusOutput
from .sampling import draw_sample, least_chunk_size, row_generators


@dataclass(frozen=True)
class LabeledBatch:
    """What `FocusModel.forward` gets with labels.

    Attributes:
        input_ids, labels (`torch.LongTensor` of shape (batch, tokens)): Documents, and the label at each place.
        attention_mask (`torch.Tensor` of shape (batch, tokens), *optional*): 1 at real tokens.
        generator (`torch.Generator`, *optional*): Draws the spans of all rows.
        sample_seeds (`torch.LongTensor` of shape (batch,), *optional*): Draws each row's, instead.
        evidence (`torch.LongTensor` of shape (batch, pairs, 2), *optional*): Places of a label, and of a token that
            tells it; -100 fills up.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    attention_mask: torch.Tensor | None = None
    generator: torch.Generator | None = None
    sample_seeds: torch.Tensor | None = None
    evidence: torch.Tensor | None = None

    def documents(self, settings: Settings, training: bool, distractors: int) -> list[Document]:
        """The rows, with the spans that are drawn from each.

        Raises:
            ValueError: for rows or labels that cannot be, or spans that leave the positions of the model.
        """
        rows = unpad(self.input_ids, self.attention_mask)
        check_vocabulary(rows, settings.facts.vocab_size)
        check_ids(self.labels, "labels")
        if self.labels.shape != self.input_ids.shape:
            raise ValueError(
                f"`labels` has the shape {tuple(self.labels.shape)}, but `input_ids` has "
                f"{tuple(self.input_ids.shape)}; they must be the same."
            )
        targets = real_tokens(self.labels, self.attention_mask)
        real = [[target for target in row if target != IGNORE] or [0] for row in targets]
        check_vocabulary(real, settings.facts.vocab_size, "labels")
        settings.check_labels(max(distractors, -(-max(map(len, rows)) // least_chunk_size(settings))))
        generators = row_generators(len(rows), self.generator, self.sample_seeds, training)
        documents = [
            Document(ids, target, draw_sample([label != IGNORE for label in target], settings, generator, distractors))
            for ids, target, generator in zip(rows, targets, generators)
        ]
        for document, pairs in zip(documents, self._evidence(rows)):
            document.evidence = pairs
        return documents

    def _evidence(self, rows: Sequence[Sequence[int]]) -> Iterator[list[tuple[int, int]]]:
        """The pairs of each row."""
        if self.evidence is None:
            return
        shape = tuple(self.evidence.shape)
        if len(shape) != 3 or shape[0] != len(rows) or shape[2] != 2 or self.evidence.is_floating_point():
            raise ValueError(
                f"`evidence` must hold integers in the shape ({len(rows)}, pairs, 2), got {self.evidence.dtype} and "
                f"{shape}."
            )
        for number, (row, pairs) in enumerate(zip(rows, self.evidence.tolist())):
            given = [(label, told) for label, told in pairs if (label, told) != (IGNORE, IGNORE)]
            for pair in given:
                if not all(0 <= place < len(row) for place in pair):
                    raise ValueError(
                        f"`evidence` has the pair {pair} in row {number}, which has {len(row)} tokens; both places "
                        "are counted from 0, padding left out."
                    )
            yield given


def reach_every_twin(
    output: FocusOutput, documents: Sequence[Document], model: nn.Module, sharded: bool
) -> FocusOutput:
    """The same output, where every twin gets a gradient.

    Args:
        output (`FocusOutput`): Of the documents.
        documents (`Sequence[Document]`): What was drawn.
        model (`nn.Module`): Its trainable parameters are twins.
        sharded (`bool`): Whether they are divided among processes.

    Raises:
        ValueError: if none would get any, because the layers of the model are quantized for inference.
    """
    if output.loss is None or not torch.is_grad_enabled():
        return output
    lost = not output.loss.requires_grad
    if lost and any(document.sample for document in documents) and _loses_gradients(model):
        raise ValueError(
            f"No gradient reaches the twins through the quantized layers of {type(model).__name__}: they are "
            "made for inference only. Train on the base model as it is, or quantized to weights only, such as 4 "
            "bits of bitsandbytes."
        )
    # sharded parameters are empty here, and nobody waits for their gradients
    if lost or (is_distributed() and not sharded):
        # DDP waits for a gradient of every parameter, in every step; some twins of the last layer have none
        output.loss = output.loss + sum(0.0 * p.sum() for p in model.parameters() if p.requires_grad)
    return output


def _loses_gradients(model: nn.Module) -> bool:
    """Whether it is the frozen projections, because they are quantized, if the loss has no gradient."""
    trains = any(parameter.requires_grad for parameter in model.parameters())
    layers = [layer for layer in model.modules() if isinstance(layer, TwinLayer)]
    return trains and not all(is_plain(layer.get_base_layer()) for layer in layers)
