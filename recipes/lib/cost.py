"""What training an adapter costs: parameters, and bytes of memory on each device."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, cast

import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedConfig

from focus_peft import FocusConfig
from focus_peft.passes.reader import TOKEN_BUDGET
from focus_peft.passes.settings import WindowSizes


Precision = Literal["float32", "bfloat16", "deepspeed-bfloat16", "4bit"]
# bytes of a parameter: (frozen, twin, its gradient, its optimizer state)
BYTES: dict[str, tuple[float, float, float, float]] = {
    "float32": (4, 4, 4, 8),
    "bfloat16": (2, 4, 4, 8),  # PEFT keeps twins in float32, and autocast computes in bfloat16
    "deepspeed-bfloat16": (2, 2, 2, 12),  # DeepSpeed keeps a float32 copy beside the two moments
    "4bit": (2, 4, 4, 8),  # but for the quantized projections
}
# bytes of a weight that bitsandbytes holds in 4 bits, with its doubly quantized scales
QUANTIZED = 0.516


@dataclass(frozen=True)
class Counts:
    """How many parameters there are.

    Attributes:
        frozen (`int`): Of the base model.
        projections (`int`): Of its linear layers but the head, which 4-bit loading quantizes.
        trainable (`int`): Of the twins.
        tensors (`int`): How many tensors the twins have.
    """

    frozen: int
    projections: int
    trainable: int
    tensors: int

    @classmethod
    def of(cls, config: PreTrainedConfig, focus: FocusConfig) -> Counts:
        """Count, exactly, on a model without storage."""
        key = (config.to_json_string(use_diff=False), f"{focus.r} {focus.target_modules}")
        if key not in _counted:
            _counted[key] = cls._count(config, focus)
        return _counted[key]

    @classmethod
    def _count(cls, config: PreTrainedConfig, focus: FocusConfig) -> Counts:
        with torch.device("meta"):
            base = AutoModelForCausalLM.from_config(config)
            base.tie_weights()  # which some releases leave to loading
            head = base.get_output_embeddings()
            linear = [
                module for module in base.modules() if isinstance(module, torch.nn.Linear) and module is not head
            ]
            projections = sum(module.weight.numel() for module in linear)
            frozen = sum(parameter.numel() for parameter in base.parameters())
            model = get_peft_model(base, focus)
        twins = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return cls(frozen, projections, sum(parameter.numel() for parameter in twins), len(twins))


# the largest models take seconds to count
_counted: dict[tuple[str, str], Counts] = {}


@dataclass(frozen=True)
class Cost:
    """Bytes on one device. `host` is in RAM instead (offloaded), all processes of a node together.

    Attributes:
        frozen: The base model.
        twins: The adapter.
        gradients: Of the adapter.
        optimizer: AdamW's state, and DeepSpeed's float32 copy of the adapter.
        cache: Keys and values of the chunks and prompts, which need no gradient.
        activations: What the backward pass needs.
        reading: What comes and goes while chunks are read.
        host: Optimizer state in RAM.
    """

    frozen: float
    twins: float
    gradients: float
    optimizer: float
    cache: float
    activations: float
    reading: float
    host: float = 0.0

    @property
    def device(self) -> float:
        """All of it on the device."""
        return sum(getattr(self, field.name) for field in fields(self) if field.name != "host")


# More than six parameters: each is one setting of a run, given by name
def training_cost(
    config: PreTrainedConfig,
    focus: FocusConfig,
    tokens: int,
    *,
    batch_size: int = 1,
    precision: Precision = "bfloat16",
    zero_stage: int = 0,
    processes: int = 1,
    offload_optimizer: bool = False,
    checkpointing: bool = False,
) -> Cost:
    """What one training step holds at its peak, on each device.

    An estimate but for parameters, gradients and optimizer state, which are exact: temporary buffers of kernels, the
    allocator's fragments and communication buckets are left out.

    Args:
        config (`PreTrainedConfig`): The base model's.
        focus (`FocusConfig`): The adapter's; both losses are drawn from each document.
        tokens (`int`): Tokens of a document.
        batch_size (`int`): Documents on a device at once. Their graphs add up.
        precision (`str`): "float32", "bfloat16" (autocast), "deepspeed-bfloat16" or "4bit" (with bfloat16 autocast).
        zero_stage (`int`): 0 to 3: from 1 on the optimizer's state, from 2 on gradients, with 3 weights are divided
            among `processes`.
        offload_optimizer (`bool`): The optimizer's state is in RAM.
        checkpointing (`bool`): Gradient checkpointing: each layer keeps its input only.

    Raises:
        ValueError: if `zero_stage` is not 0 to 3, or `precision` is not known.
    """
    if zero_stage not in (0, 1, 2, 3):
        raise ValueError(f"`zero_stage` must be 0, 1, 2 or 3, got {zero_stage!r}.")
    if precision not in BYTES:
        raise ValueError(f"`precision` must be one of {', '.join(map(repr, BYTES))}, got {precision!r}.")
    counts = Counts.of(config, focus)
    frozen, twin, gradient, state = BYTES[precision]
    weights = counts.frozen * frozen - (counts.projections * (frozen - QUANTIZED) if precision == "4bit" else 0)
    shares = [processes if zero_stage >= stage else 1 for stage in (1, 2, 3)]
    # one counter of steps for each tensor of a plain optimizer
    optimizer = (counts.trainable * state + (0 if zero_stage else 4 * counts.tensors)) / shares[0]
    cache, activations, reading = _activations(
        config, focus, tokens, 4 if precision == "float32" else 2, checkpointing
    )
    return Cost(
        frozen=weights / shares[2],
        twins=counts.trainable * twin / shares[2],
        gradients=counts.trainable * gradient / shares[1],
        optimizer=0.0 if offload_optimizer else optimizer,
        cache=cache,
        activations=activations * batch_size,
        reading=reading,
        host=optimizer * processes if offload_optimizer else 0.0,
    )


def _activations(
    config: PreTrainedConfig, focus: FocusConfig, tokens: int, element: int, checkpointing: bool
) -> tuple[float, float, float]:
    """Bytes for one document: keys and values without a graph, what the backward pass needs, what comes and goes."""
    facts = cast(Any, config)
    hidden, layers, vocabulary = facts.hidden_size, facts.num_hidden_layers, facts.vocab_size
    heads = facts.num_attention_heads
    width = heads * (getattr(facts, "head_dim", None) or hidden // heads)
    shared = width * (getattr(facts, "num_key_value_heads", None) or heads) // heads
    inner = getattr(facts, "intermediate_size", None) or 4 * hidden
    sizes = WindowSizes.for_model(focus, facts.max_position_embeddings)
    labels, exact = focus.label_size, focus.decoding == "exact"
    newest = 1 if exact else labels
    windows = 2 if focus.loss == "sum" else 1

    chunk = min(sizes.chunk, tokens)
    rows = max(1, math.ceil((tokens - sizes.local) / chunk))
    prompt = min(sizes.prompt, chunk) + 1
    columns = chunk + windows * (prompt + 2 * newest - 2)
    cache = rows * columns * layers * 2 * shared * element

    # (tokens with a graph, rows of attention, keys that each row sees, tokens that go through twins)
    passes = [(rows * windows * newest, rows, columns + windows * newest, True)]
    local = (focus.train_local_size or sizes.local) + labels
    with_graph = local if exact else labels
    passes += [(with_graph, 1, newest * rows + local, False)] * windows
    activations, layer = 0.0, 0.0
    for length, keyed, keys, twins in passes:
        # norms save float32; the attention its query and result; the MLP its gate, its activation and its product
        token = 2 * 4 * hidden + element * (2 * width + 3 * inner + (hidden if twins else 0))
        attention = 2 * keyed * keys * width * element
        kept = length * hidden * element if checkpointing else length * token + attention
        activations += layers * kept
        layer = max(layer, length * token + attention)
    activations += layer if checkpointing else 0
    activations += windows * labels * vocabulary * (4 if element == 4 else 6) * 2  # logits and their log-softmax
    reading = min(TOKEN_BUDGET, rows * chunk) * (2 * inner + 4 * hidden) * element
    return cache, activations, reading
