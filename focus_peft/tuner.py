"""`TwinTuner`: what PEFT asks of a tuner. It puts twins into a frozen model, and loads and switches them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, check_target_module_exists
from torch import nn

from .adapter_file import check_adapter_weights
from .config import FocusConfig
from .frozen.facts import ModelFacts
from .frozen.projections import find_projections, is_projection
from .layer import MERGE_REFUSAL, TwinLayer
from .passes.settings import Settings


class TwinTuner(BaseTuner):
    """A model whose attention projections have twins. `FocusModel` says what it is made with, and what it refuses."""

    prefix: str = "focus_"
    tuner_layer_cls = TwinLayer
    target_module_mapping: dict[str, list[str]] = {}

    def __init__(self, model: nn.Module, peft_config: Any, adapter_name: str, **kwargs: Any) -> None:
        if not isinstance(peft_config, dict):  # as `PeftModel` gives it
            raise ValueError(
                "`model` would lose this tuner, which reads its chunks, in `add_adapter`, in "
                "`inject_adapter_in_model` and in `AutoModelForCausalLM.from_pretrained` of an adapter; use "
                "`get_peft_model` or `PeftModel.from_pretrained`."
            )
        facts = ModelFacts.of(model)
        Settings.of(peft_config[adapter_name], facts)  # sizes that do not fit fail before anything is wrapped
        # nn.Module's constructor comes with BaseTuner's, which injects; so these are set past its attribute checks
        self.__dict__["_facts"] = facts
        super().__init__(model, peft_config, adapter_name, **kwargs)
        self.adapters_enabled = True
        # The loss is a mean of its own, so the Trainer must not divide it again
        cast(Any, model).accepts_loss_kwargs = False

    @property
    def facts(self) -> ModelFacts:
        """What the method needs to know of the base model, whose embedding may have been resized."""
        vocab_size = self.model.get_input_embeddings().num_embeddings
        if vocab_size != self._facts.vocab_size:
            self.__dict__["_facts"] = replace(self._facts, vocab_size=vocab_size)
        return self._facts

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict) -> PeftConfig:
        Settings.of(cast(FocusConfig, peft_config), self.facts)
        inside = tuple(f"{path}." for path, module in self.model.named_modules() if isinstance(module, TwinLayer))
        for path, module in self.model.named_modules():
            if path.endswith("kv_b_proj") and self._check_target_module_exists(peft_config, path):
                raise ValueError(
                    f"`target_modules` matches {path!r}, which expands the cached latents of all tokens at once, so a "
                    "candidate has no twin of it; name `kv_a_proj_with_mqa`, which makes the latents."
                )
            if not path or path.startswith(inside) or isinstance(module, TwinLayer) or is_projection(module):
                continue
            if self._check_target_module_exists(peft_config, path):
                raise ValueError(
                    f"`target_modules` matches {path!r}, a {type(module).__name__}; a twin can be made of a linear "
                    "projection only. Name the attention's q, k, v and o projections."
                )
        return peft_config

    def _check_target_module_exists(self, peft_config: PeftConfig, key: str) -> bool:  # type: ignore[override]
        if cast(FocusConfig, peft_config).target_modules is not None:
            return bool(check_target_module_exists(peft_config, key))
        return key in self._projections

    @property
    def _projections(self) -> frozenset[str]:
        # found once: injection asks for every module of the model
        if "found" not in self.__dict__:
            self.__dict__["found"] = frozenset(find_projections(self.model))
        return self.__dict__["found"]

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: FocusConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        if isinstance(target, TwinLayer):
            target.update_layer(adapter_name, peft_config)
            return
        layer = TwinLayer(target, adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        # PEFT's `_replace_module` would send the twins of an offloaded layer to where its weights are not
        setattr(parent, target_name, layer)

    def _check_merge_allowed(self) -> None:
        raise NotImplementedError(MERGE_REFUSAL)

    def merge_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Not possible for a projection that depends on the position.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(MERGE_REFUSAL)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Make one adapter the active one.

        Raises:
            ValueError: if several are given: a candidate goes through one twin.
        """
        if not isinstance(adapter_name, str) and adapter_name:
            if len(adapter_name) != 1:
                raise ValueError(
                    f"`adapter_name` is {adapter_name!r}, but a candidate goes through one twin; activate one adapter."
                )
            adapter_name = adapter_name[0]
        super().set_adapter(adapter_name, inference_mode=inference_mode)

    def unload(self) -> nn.Module:
        """The base model, with its own projections and without anything of ours."""
        model = super().unload()
        for name in ("accepts_loss_kwargs", "peft_config"):
            model.__dict__.pop(name, None)
        return model

    def enable_adapter_layers(self) -> None:
        super().enable_adapter_layers()
        self.adapters_enabled = True

    def disable_adapter_layers(self) -> None:
        super().disable_adapter_layers()
        self.adapters_enabled = False

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # PEFT loads with strict=False: what does not fit would be skipped without a word
        given = {name: weight for name, weight in state_dict.items() if name.startswith(prefix) and ".focus_" in name}
        adapters = {_adapter_of(name) for name in given}
        own = {prefix + name: weight for name, weight in self.state_dict().items() if ".focus_" in name}
        if given:
            check_adapter_weights(given, {name: w for name, w in own.items() if _adapter_of(name) in adapters})
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @property
    def active_config(self) -> FocusConfig:
        """The configuration of the active adapter.

        Raises:
            ValueError: if there is none.
        """
        if not self.active_adapters:
            raise ValueError("There is no active adapter; add one, or call `set_adapter`.")
        return cast(FocusConfig, self.peft_config[self.active_adapters[0]])


def _adapter_of(name: str) -> str:
    """The adapter that a parameter such as `….focus_A.default.weight` belongs to."""
    return name.rpartition(".focus_")[2].split(".")[1]
