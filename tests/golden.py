"""The golden model: a tiny random Llama with twins, whose numbers the paper's released code computed."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from focus_peft import FocusConfig


GOLDEN = Path(__file__).parent / "files" / "golden"
CASES = json.loads((GOLDEN / "cases.json").read_text())


def golden_base(weights: dict[str, torch.Tensor]) -> LlamaForCausalLM:
    """The golden base model."""
    settings = json.loads((GOLDEN / "config.json").read_text())
    fields = ["beacon_param", "attention", "threshold", "prompt_cap", "torch", "transformers", "rope_theta"]
    config = LlamaConfig(**{name: value for name, value in settings.items() if name not in fields})
    config.rope_parameters = {"rope_type": "default", "rope_theta": settings["rope_theta"]}
    model = LlamaForCausalLM(config)
    model.load_state_dict({name: weight for name, weight in weights.items() if "beacon" not in name})
    model.generation_config.eos_token_id = None
    return model.eval()


def golden_model(weights: dict[str, torch.Tensor], **sizes: int) -> PeftModel:
    """The golden base model with the golden twins."""
    model = get_peft_model(golden_base(weights), FocusConfig(decoding="exact", **sizes)).eval()
    names = [name for name in weights if ".self_attn.beacon_" in name]
    assert len(names) == 12
    with torch.no_grad():
        for name in names:
            projection = name.replace("beacon_", "").removesuffix(".weight")
            model.base_model.model.get_submodule(projection).focus_twin["default"].weight.copy_(weights[name])
    return model
