"""`import focus_peft` makes the method one of PEFT's own, in whatever way it is imported."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from conftest import make_focus_model, make_tiny_model, random_ids
from packaging.version import Version
from peft import (
    LoraConfig,
    PeftModel,
    PeftModelForCausalLM,
    PeftType,
    get_peft_config,
    get_peft_model,
    inject_adapter_in_model,
)
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from transformers import AutoModelForCausalLM
from transformers.integrations.peft import MIN_PEFT_VERSION

from focus_peft import FocusConfig, FocusModel
from focus_peft.peft_type import FOCUS
from focus_peft.registration import register


# A real member of PeftType


def test_every_way_to_the_member_leads_to_the_same_object() -> None:
    lookups = [
        PeftType.FOCUS,  # type: ignore[attr-defined]
        PeftType["FOCUS"],
        PeftType("FOCUS"),
        PeftType(FOCUS),
        PeftType.__members__["FOCUS"],
        {member.value: member for member in PeftType}["FOCUS"],
        FocusConfig().peft_type,
        copy.copy(FOCUS),
        copy.deepcopy(FOCUS),
        copy.deepcopy({"nested": [FOCUS]})["nested"][0],
    ]
    lookups += [pickle.loads(pickle.dumps(FOCUS, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    assert [found is FOCUS for found in lookups] == [True] * len(lookups)


def test_the_member_looks_like_the_other_members() -> None:
    lora = PeftType.LORA
    assert type(FOCUS) is PeftType
    assert isinstance(FOCUS, str)
    assert (FOCUS.name, FOCUS.value, FOCUS._name_, FOCUS._value_) == ("FOCUS",) * 4
    for shown in (repr, str, "{}".format):
        assert shown(FOCUS) == shown(lora).replace("LORA", "FOCUS")
    assert FOCUS == "FOCUS" and hash(FOCUS) == hash("FOCUS")
    assert lora != FOCUS
    assert sorted(vars(FOCUS)) == sorted(vars(lora))
    # it is iterated over once and last
    members = list(PeftType)
    assert members.count(FOCUS) == 1 and members[-1] is FOCUS
    assert list(reversed(PeftType))[0] is FOCUS
    assert len(PeftType) == len(members) == len(set(members)) == len(PeftType.__members__)
    assert FOCUS in PeftType
    assert [member._sort_order_ for member in members] == list(range(len(members)))
    # it is written to JSON as its name
    assert json.loads(json.dumps({"peft_type": FOCUS})) == {"peft_type": "FOCUS"}
    assert json.loads(json.dumps({FOCUS: 1})) == {"FOCUS": 1}
    # and cannot be replaced
    with pytest.raises(AttributeError):
        PeftType.FOCUS = "other"  # type: ignore[attr-defined,misc]
    assert PeftType["FOCUS"] is FOCUS


def test_other_names_are_still_refused() -> None:
    with pytest.raises(ValueError):
        PeftType("FOCUSED")


def test_peft_knows_configuration_tuner_and_prefix() -> None:
    assert PEFT_TYPE_TO_CONFIG_MAPPING[FOCUS] is PEFT_TYPE_TO_CONFIG_MAPPING["FOCUS"] is FocusConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[FOCUS] is PEFT_TYPE_TO_TUNER_MAPPING["FOCUS"] is FocusModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING[FOCUS] == FocusModel.prefix == "focus_"


def test_a_configuration_can_be_made_from_the_name_alone() -> None:
    config = get_peft_config({"peft_type": "FOCUS", "r": 3})
    assert type(config) is FocusConfig and config.r == 3


# Any number of times


def test_registering_again_changes_nothing() -> None:
    before = list(PeftType), dict(PEFT_TYPE_TO_CONFIG_MAPPING), dict(PEFT_TYPE_TO_TUNER_MAPPING)
    for _ in range(3):
        register()
    assert (list(PeftType), dict(PEFT_TYPE_TO_CONFIG_MAPPING), dict(PEFT_TYPE_TO_TUNER_MAPPING)) == before


FRESH_PROCESS = """
import importlib, json, pickle, sys

NAMES = {
    "peft": ["PeftModel", "PeftModelForCausalLM", "PeftMixedModel", "PeftConfig", "LoraConfig", "LoraModel",
        "get_peft_model", "AutoPeftModelForCausalLM"],
    "peft.mapping": ["get_peft_config"],
    "peft.config": ["PeftConfigMixin"],
    "peft.tuners.tuners_utils": ["BaseTuner", "BaseTunerLayer"],
    "peft.utils.save_and_load": ["get_peft_model_state_dict", "set_peft_model_state_dict"],
    "transformers": ["PreTrainedModel", "GenerationMixin", "LlamaForCausalLM", "Trainer", "TrainingArguments",
        "TrainerCallback", "Cache", "DynamicCache", "AutoModelForCausalLM", "PreTrainedTokenizerBase"],
    "transformers.utils.hub": ["PushToHubMixin", "create_and_tag_model_card"],
    "transformers.modeling_utils": [], "transformers.masking_utils": [],
    "huggingface_hub": ["HfApi", "ModelCard", "ModelCardData"],
    "torch.nn": ["Module", "Linear"],
    "accelerate": ["Accelerator"],
    "trl": ["SFTTrainer", "DPOTrainer", "GRPOTrainer"],
}

def owners():
    for module, names in NAMES.items():
        try:
            found = importlib.import_module(module)
        except ImportError:
            continue
        yield module, found
        for name in names:
            owner = getattr(found, name)
            yield f"{module}.{name}", owner
            if isinstance(owner, type):
                for base in owner.__mro__[1:-1]:
                    yield f"{base.__module__}.{base.__qualname__}", base

before = {name: (owner, dict(vars(owner))) for name, owner in owners()}

def changed():
    for name, (owner, attributes) in before.items():
        now = vars(owner)
        yield from (f"{name}.{key}" for key, value in attributes.items() if now.get(key) is not value)
        if isinstance(owner, type):  # a module may load more
            yield from (f"{name}.{key}" for key in now if key not in attributes)

with open(sys.argv[1], "rb") as file:
    config = pickle.load(file)
found = {"unpickled": [type(config).__name__, config.peft_type.value, config.r]}

import torch
from peft import PeftType, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig
import focus_peft, focus_peft.trainer, focus_peft.hub, focus_peft.cli.main
if "trl" in before:
    import focus_peft.sft
found |= {"compared": list(before), "changed": list(changed())}
before["peft.peft_model.PeftModel"][0].save_pretrained = lambda *args: None
found["replaced"] = list(changed())

first = PeftType.FOCUS
for module in (focus_peft.registration, focus_peft.config, focus_peft.model, focus_peft, focus_peft):
    importlib.reload(module)
for name in [name for name in sys.modules if name.split(".")[0] == "focus_peft"]:
    del sys.modules[name]
import focus_peft

found["same member"] = PeftType.FOCUS is first is focus_peft.FocusConfig().peft_type
found["members"] = list(PeftType).count(first)
sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=50)
base = AutoModelForCausalLM.from_config(LlamaConfig(**sizes, max_position_embeddings=64))
model = get_peft_model(base, focus_peft.FocusConfig())
found["tokens"] = model.generate(torch.randint(3, 50, (1, 40)), max_new_tokens=2).shape[1]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def fresh_process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process found that first opened a pickled configuration, looked what that and all of focus_peft changed,
    and then reloaded and imported focus_peft anew.
    """
    path = tmp_path_factory.mktemp("pickle") / "config.pickle"
    path.write_bytes(pickle.dumps(FocusConfig(r=5)))
    command = [sys.executable, "-W", "ignore", "-c", FRESH_PROCESS, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_pickled_configuration_registers_the_method_where_it_is_opened(fresh_process: dict[str, Any]) -> None:
    assert fresh_process["unpickled"] == ["FocusConfig", "FOCUS", 5]


def test_reloading_and_importing_anew_keep_the_method_working(fresh_process: dict[str, Any]) -> None:
    assert fresh_process["same member"]
    assert fresh_process["members"] == 1
    assert fresh_process["tokens"] == 42


# Nothing else is changed


def test_importing_changes_no_other_class_or_module(fresh_process: dict[str, Any]) -> None:
    known = {"peft.peft_model.PeftModel", "transformers.Trainer", "transformers.utils.hub.PushToHubMixin"}
    assert known <= set(fresh_process["compared"])
    assert fresh_process["changed"] == []
    assert "peft.peft_model.PeftModel.save_pretrained" in fresh_process["replaced"], "what is replaced is found"


# Models


def test_an_adapter_can_have_any_name(tmp_path: Path) -> None:
    model = get_peft_model(make_tiny_model(), FocusConfig(), adapter_name="reader")
    assert type(model) is PeftModelForCausalLM and type(model.base_model) is FocusModel
    assert model.active_adapters == ["reader"]
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_tiny_model(), tmp_path / "reader", adapter_name="again")
    assert loaded.active_adapters == ["again"]


def test_other_methods_of_peft_work_as_before(tmp_path: Path) -> None:
    ids = random_ids(10)[None]
    model = get_peft_model(make_tiny_model(), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    assert torch.equal(model(ids).logits, make_tiny_model()(ids).logits)
    model.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(make_tiny_model(), tmp_path)(ids).logits, model(ids).logits)


def test_a_tuner_that_would_be_lost_is_refused_instead(tmp_path: Path) -> None:
    # transformers 5.24 asks for PEFT 0.22, which is not there yet, in `add_adapter`
    is_refused_before = Version(peft.__version__) < Version(MIN_PEFT_VERSION)
    own = "version of PEFT you are using is not compatible" if is_refused_before else "get_peft_model"
    with pytest.raises(ValueError, match="get_peft_model"):
        inject_adapter_in_model(FocusConfig(), make_tiny_model())
    with pytest.raises(ValueError, match=own):
        make_tiny_model().add_adapter(FocusConfig())
    base = make_tiny_model(dtype=torch.float32)
    base.save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    get_peft_model(base, FocusConfig()).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="get_peft_model"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")


def test_a_model_that_is_wrapped_twice_reads_with_the_new_adapter() -> None:
    ids = random_ids(30)[None]
    base = make_tiny_model()
    get_peft_model(base, FocusConfig(chunk_size=8, local_size=8, prompt_size=4))
    with pytest.warns(UserWarning, match="second time"):
        again = get_peft_model(base, FocusConfig(chunk_size=8, local_size=8, prompt_size=4)).eval()
    with torch.no_grad():
        expected = make_focus_model()
        trained = dict(expected.named_parameters())
        for name, parameter in again.named_parameters():
            parameter.copy_(trained[name])
    torch.testing.assert_close(again(ids).logits, expected(ids).logits, rtol=0, atol=1e-9)
