"""Every method of a wrapped model is accounted for, so that none runs the base model past the adapter in silence.

The tables below name all of them: those that use the adapter, with the test that shows it; those that are refused;
and those that do not run the model. A method that a later release of PEFT or transformers adds is in no table, and
fails here.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import random_ids
from peft import PeftModel, PeftModelForCausalLM
from refusal import count_passes, refusal
from torch import nn
from transformers import GenerationMixin, PreTrainedModel

from focus_peft import FocusModel
from focus_peft.decoding.refusals import PastTheAdapter


TESTS = Path(__file__).parent
IDS = random_ids(30)[None]  # the local window has 8 tokens

# They run the model with its adapter, or say which adapter that is: each with the test that shows it
USED = {
    "add_adapter": "test_tuner.py::test_adding_an_adapter_changes_nothing_until_it_is_set",
    "chunk_attention": "decoding/test_chunk_attention.py::test_chunk_attention_is_what_eager_attention_returns",
    "chunk_scores": "decoding/test_read_chunks.py::test_chunk_scores_are_what_the_reference_looks_at",
    "compile": "test_loading.py::test_a_compiled_model_reads_and_trains_like_one_that_is_not",
    "delete_adapter": "test_tuner.py::test_deleting_an_adapter_leaves_the_others_as_they_were",
    "disable_adapter": "decoding/test_families.py::test_a_disabled_adapter_leaves_the_base_model",
    "disable_adapter_layers": "test_tuner.py::test_layers_can_be_disabled_and_enabled_without_a_context",
    "enable_adapter_layers": "test_tuner.py::test_layers_can_be_disabled_and_enabled_without_a_context",
    "encode": "decoding/test_decoding.py::test_a_memory_is_encoded_once_and_asked_twice_in_either_order",
    "forward": "decoding/test_decoding.py::test_forward_equals_the_reference_at_every_token",
    "from_pretrained": "test_tuner.py::test_a_loaded_adapter_computes_the_same_logits",
    "generate": "decoding/test_decoding.py::test_any_sizes_equal_the_reference",
    "keeping_chunks": "decoding/test_threads.py::test_threads_share_chunks_that_are_kept",
    "load_adapter": "test_tuner.py::test_every_adapter_of_a_model_is_saved_and_loaded",
    "load_memory": "kv/test_storage.py::test_a_saved_memory_can_be_loaded_into_every_storage",
    "push_to_hub": "hub/test_hub.py::test_a_pushed_adapter_brings_its_card_and_keeps_one_that_is_there",
    "save_pretrained": "test_tuner.py::test_a_file_holds_the_twins_and_nothing_else",
    "set_adapter": "test_tuner.py::test_each_adapter_reads_as_if_it_were_alone",
    "unload": "test_tuner.py::test_unload_gives_back_the_base_model_with_its_original_modules",
}

# They raise, before the model runs
REFUSED: dict[str, Callable[[Any], Any]] = {
    "add_weighted_adapter": lambda model: model.add_weighted_adapter(["default"], [1.0], "both"),
    "continuous_batching_context_manager": lambda model: model.continuous_batching_context_manager(),
    "disable_adapters": lambda model: model.disable_adapters(),  # transformers' own word for other adapters
    "enable_adapters": lambda model: model.enable_adapters(),
    "generate_batch": lambda model: model.generate_batch(IDS.tolist(), max_new_tokens=2),
    "get_adapter_state_dict": lambda model: model.get_adapter_state_dict(),
    "get_compiled_call": lambda model: model.get_compiled_call(None),
    "heal_tokens": lambda model: model.heal_tokens(IDS),
    "init_continuous_batching": lambda model: model.init_continuous_batching(),
    "merge_adapter": lambda model: model.merge_adapter(),
    "merge_and_unload": lambda model: model.merge_and_unload(),
}

# They do not run the model
NAMED = """
# text and numbers about the model
active_adapters can_generate compute_transition_scores generation_config_class get_correct_attn_implementation
get_correct_experts_implementation get_expanded_tied_weights_keys get_experts_implementation get_init_context
get_layer_status get_memory_footprint get_model_config get_model_status get_nb_trainable_parameters
has_active_enabled_adapter is_backend_compatible is_custom_code is_remote_code num_parameters
print_trainable_parameters settings should_save_on_this_rank supports_lora_conversion tuner_layer_cls
warn_if_padding_and_no_attention_mask
# parts of the frozen model, handed out as such
get_base_model get_decoder get_encoder get_input_embeddings get_output_embeddings get_parameter_or_buffer
get_position_embeddings named_non_persistent_buffers retrieve_modules_from_names
# they change the frozen model, on demand
dequantize init_weights initialize_weights mark_tied_weights_as_initialized post_init resize_position_embeddings
resize_token_embeddings set_attn_implementation set_decoder set_encoder set_experts_implementation set_input_embeddings
set_output_embeddings set_use_kernels kernelize tie_weights
# they prepare training
activation_checkpointing_disable activation_checkpointing_enable disable_input_require_grads enable_input_require_grads
gradient_checkpointing_disable gradient_checkpointing_enable prepare_model_for_gradient_checkpointing set_requires_grad
# they prepare arguments of `generate` and `forward`, or undo what was refused to be done
adjust_generation_fn create_extended_attention_mask_for_decoder destroy_cached_continuous_batching_manager
get_extended_attention_mask invert_attention_mask load_custom_generate prepare_inputs_for_generation unmerge_adapter
# loading, saving and spreading weights
add_model_tags barrier_after_gathered_checkpoint_save create_or_update_model_card enable_peft_hotswap
gather_sharded_state_dict_for_save init_parallel_plans inject_adapter maybe_distribute_model prepare_distribute_model
register_for_auto_class save_distributed_checkpoint
# of prompt learning, another kind of adapter
get_prompt get_prompt_embedding_to_save set_auxiliary_adapters
"""
HARMLESS = {name for line in NAMED.splitlines() if not line.startswith("#") for name in line.split()}

CLASSES = (GenerationMixin, PreTrainedModel, PeftModel, PeftModelForCausalLM, FocusModel)


def public_callables(kind: type) -> set[str]:
    """What may be called on an object of a class, but for what torch gives every module: that is `forward` and
    `compile`, or harmless.
    """
    names = {name for name in dir(kind) if not name.startswith("_") and callable(getattr(kind, name, None))}
    return names - (set(dir(nn.Module)) - {"forward", "compile"})


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_public_callable_is_classified(kind: type) -> None:
    new = public_callables(kind) - set(USED) - set(REFUSED) - HARMLESS
    assert not new, f"does {kind.__name__}.{min(new)} use the adapter, refuse, or not run the model?"


def test_no_callable_is_in_two_classes() -> None:
    assert len({*USED, *REFUSED, *HARMLESS}) == len(USED) + len(REFUSED) + len(HARMLESS)


@pytest.mark.parametrize("name", USED)
def test_what_uses_the_adapter_has_a_test(name: str) -> None:
    file, _, test = USED[name].partition("::")
    tree = ast.parse((TESTS / file).read_text())
    assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert name in (TESTS / file).read_text() or name == "forward"  # which is called by no name


@pytest.mark.parametrize("name", REFUSED)
def test_what_leads_past_the_adapter_is_refused_before_the_model_runs(model: PeftModel, name: str) -> None:
    with count_passes(model) as passes, pytest.raises((ValueError, NotImplementedError)):
        REFUSED[name](model)
    assert not passes


OURS = [name for name, value in inspect.getmembers_static(FocusModel) if isinstance(value, PastTheAdapter)]


def test_what_we_refuse_is_classified_so() -> None:
    assert OURS
    assert set(OURS) <= set(REFUSED)


@pytest.mark.parametrize("name", OURS)
def test_a_refusal_names_the_remedy(model: PeftModel, name: str) -> None:
    with refusal(f"`{name}`", "focus adapter", "`model.disable_adapter()`", model=model):
        REFUSED[name](model)
    assert hasattr(model, name)  # to ask for it is no error


@pytest.mark.parametrize("name", OURS)
def test_with_the_adapter_disabled_it_is_the_base_models_own(model: PeftModel, name: str) -> None:
    base = model.get_base_model()
    with model.disable_adapter():
        assert getattr(model, name) == getattr(base, name)
    assert getattr(base, name).__func__ is getattr(type(base), name)  # nothing of transformers is rebound
