"""Every argument of transformers' `TrainingArguments`, ours and TRL's `SFTConfig`: what it means for a run.

A test asks that each argument of the installed releases stand in one of the three tables.
"""

from __future__ import annotations

from typing import Any

from ..fields import names


# Decide what is trained: a run that is resumed must have the same, and a published recipe tells them
COURSE = names(
    """
    per_device_train_batch_size gradient_accumulation_steps num_train_epochs max_steps auto_find_batch_size
    learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps warmup_ratio optim optim_args optim_target_modules
    weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm bf16 fp16 tf32 seed data_seed full_determinism
    dataloader_drop_last train_sampling_strategy group_by_length length_column_name label_names remove_unused_columns
    metric_for_best_model greater_is_better distractors chat_template_path dataset_text_field dataset_kwargs eos_token
    pad_token max_length truncation_mode shuffle_dataset completion_only_loss assistant_only_loss
    """
)
# May change from one start of a run to the next: where it runs, how fast, what is logged, measured, saved and uploaded
FREE = names(
    """
    output_dir do_train do_eval do_predict resume_from_checkpoint local_rank debug skip_memory_metrics logging_strategy
    logging_steps logging_first_step log_on_each_node logging_nan_inf_filter log_level log_level_replica disable_tqdm
    report_to run_name project trackio_space_id trackio_bucket_id trackio_static_space_id include_num_input_tokens_seen
    log_local_loss logging_dir eval_strategy eval_steps eval_delay per_device_eval_batch_size prediction_loss_only
    eval_on_start eval_do_concat_batches eval_use_gather_object eval_accumulation_steps include_for_metrics
    batch_eval_metrics bf16_full_eval fp16_full_eval eval_tasks_steps max_loss save_strategy save_steps
    save_on_each_node save_total_limit save_only_model save_safetensors load_best_model_at_end ignore_data_skip
    restore_callback_states_from_checkpoint push_to_hub hub_token hub_private_repo hub_model_id
    hub_always_push hub_revision use_cpu accelerator_config fsdp fsdp_config deepspeed ddp_find_unused_parameters
    ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout average_tokens_across_devices
    dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
    dataloader_multiprocessing_context dataloader_in_order activation_checkpointing activation_checkpointing_kwargs
    gradient_checkpointing gradient_checkpointing_kwargs torch_compile torch_compile_backend torch_compile_mode
    use_cache torch_empty_cache_steps liger_kernel_config model_init_kwargs trust_remote_code router_aux_loss_coef
    dataset_num_proc packing_strategy pad_to_multiple_of activation_offloading
    """
)
# Cannot work: for each the values that it may have, and why it may have no other
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "label_smoothing_factor": ((0.0,), "the two losses of the paper are computed by the model"),
    "neftune_noise_alpha": ((None,), "chunks are read without the noise, so what is read would not be what is seen"),
    "use_liger_kernel": ((False,), "its kernels replace the forward pass that reads chunks"),
    "loss_type": (("nll", "chunked_nll", None), "the two losses of the paper take its place"),
    "packing": ((False,), "spans must not cross from one document into the next"),
    "eval_packing": ((False, None), "spans must not cross from one document into the next"),
    "padding_free": ((False,), "spans must not cross from one document into the next"),
    "parallelism_config": ((None,), "documents are read in chunks, and cannot be divided among processes"),
    "enable_jit_checkpoint": ((False,), "at SIGTERM, a checkpoint is saved without it"),
    "hub_strategy": (("every_save", "end"), "checkpoints hold pickles, which are never uploaded"),
}


def check_options(args: Any) -> None:
    """Raise a ValueError for an argument that would be without effect, or could not work."""
    for name, (allowed, reason) in REFUSED.items():
        value = getattr(args, name, allowed[0])
        if getattr(value, "value", value) not in allowed:
            raise ValueError(f"`{name}` is {value!r}, but {reason}; leave it out, or at `{name}={allowed[0]!r}`.")


def course_of(args: Any) -> dict[str, Any]:
    """What decides the course of a run, by name. An argument that no table knows is taken to be one of these."""
    known: dict[str, Any] = args.to_dict()
    return {name: value for name, value in known.items() if name not in FREE and name not in REFUSED}
