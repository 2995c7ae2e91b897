"""`TwinTuner`: what PEFT asks of a tuner. It puts twins into a frozen model, and loads and switches them."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any, cast

import torch
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_target_module_exists
from torch import nn
from transformers import PreTrainedModel

from .adapter_file import check_adapter_weights
from .config import FocusConfig
from .foreign_options import refuse_foreign
from .frozen.facts import ModelFacts, embedding_count
from .frozen.own_bos import reads_bos
from .frozen.projections import find_projections, is_projection
from .layer import MERGE_REFUSAL, TwinLayer
from .other_tuners import FocusConfigs, check_above, check_beneath, is_foreign
from .passes.settings import Settings


# A twin's parameter, such as `….focus_A.default.weight`, and its adapter
PARAMETER = re.compile(rf"\.(?:{'|'.join(TwinLayer.adapter_layer_names)})\.([^.]+)")


class TwinTuner(BaseTuner):
    """A model whose attention projections have twins. `FocusModel` says what it is made with, and what it refuses."""

    prefix: str = "focus_"
    tuner_layer_cls = TwinLayer
    target_module_mapping: dict[str, list[str]] = {}

    def __init__(self, model: nn.Module, peft_config: Any, adapter_name: str, **kwargs: Any) -> None:
        if not isinstance(peft_config, dict):  # as `PeftModel` gives it
            raise ValueError(
                "`model` would lose this tuner, which reads its chunks, in transformers' `add_adapter` and "
                "`load_adapter`, in `inject_adapter_in_model` and in `AutoModelForCausalLM.from_pretrained` of an "
                "adapter; use `get_peft_model` or `PeftModel.from_pretrained`."
            )
        check_beneath(model)
        facts = ModelFacts.of(model)
        Settings.of(peft_config[adapter_name], facts)  # sizes that do not fit fail before anything is wrapped
        # nn.Module's constructor comes with BaseTuner's, which injects; so these are set past its attribute checks
        self.__dict__["_facts"] = facts
        self.__dict__["twins"] = dict[str, TwinLayer]()
        configs = vars(model).get("peft_config")
        self.__dict__["beneath"] = configs if is_foreign(configs) else None
        if is_foreign(configs):
            del model.peft_config  # or PEFT would take its adapters for ours
        try:
            super().__init__(model, FocusConfigs(peft_config), adapter_name, **kwargs)
        except BaseException:
            if is_foreign(configs):
                cast(Any, model).peft_config = configs
            raise
        # The loss is a mean of its own, so the Trainer must not divide it again
        cast(Any, model).accepts_loss_kwargs = False

    @property
    def facts(self) -> ModelFacts:
        """What the method needs to know of the base model, whose embedding may have been resized."""
        vocab_size = embedding_count(self.model)
        if vocab_size != self._facts.vocab_size:
            self.__dict__["_facts"] = replace(self._facts, vocab_size=vocab_size)
        return self._facts

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict) -> PeftConfig:
        refuse_foreign(vars(peft_config))
        Settings.of(cast(FocusConfig, peft_config), self.facts)
        self._check_layers(cast(FocusConfig, peft_config))
        layers = [path for path, module in self.model.named_modules() if isinstance(module, BaseTunerLayer)]
        inside = tuple(f"{path}." for path in layers)
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

    def _check_layers(self, config: FocusConfig) -> None:
        given, count = config.layers_to_transform, self.model.config.num_hidden_layers
        if given is not None and max(given if isinstance(given, list) else [given]) >= count:
            raise ValueError(
                f"`layers_to_transform` is {given!r}, but the model has {count} layers, and the first is 0; leave out "
                "those that are not there."
            )

    def _check_target_module_exists(self, peft_config: PeftConfig, key: str) -> Any:  # type: ignore[override]
        config: Any = peft_config
        if config.target_modules is None:
            if key not in self._projections:
                return False
            config = SimpleNamespace(**{**vars(config), "target_modules": [key.rpartition(".")[2]]})
        return check_target_module_exists(config, key)  # not only True or False: PEFT tells excluded modules apart

    @cached_property  # injection asks for every module of the model
    def _projections(self) -> frozenset[str]:
        return frozenset(find_projections(self.model))

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: FocusConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        if isinstance(target, TwinLayer):  # which may be of a model that was wrapped before
            target.update_layer(adapter_name, peft_config)
        else:
            target = TwinLayer(target, adapter_name, peft_config)
            if adapter_name not in self.active_adapters:
                target.requires_grad_(False)
            # PEFT's `_replace_module` would send the twins of an offloaded layer to where its weights are not
            setattr(parent, target_name, target)
        self.twins[current_key] = target

    def _check_merge_allowed(self) -> None:
        raise NotImplementedError(MERGE_REFUSAL)

    def merge_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Not possible for a projection that depends on the position.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(MERGE_REFUSAL)

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Not possible: a candidate goes through one twin.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "Focus adapters cannot be combined into a weighted one: a candidate goes through one twin. Use "
            "`set_adapter` to choose one, and train one on all data where one should do all."
        )

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
        for twin in self.twins.values():
            twin.set_adapter(adapter_name, inference_mode=inference_mode)
        self.active_adapter = adapter_name

    def unload(self) -> nn.Module:
        """The base model, with its own projections and without anything of ours."""
        check_above(self.model, self.twins)
        for path, twin in self.twins.items():
            parent, _, name = path.rpartition(".")
            setattr(self.model.get_submodule(parent), name, twin.base_layer)
        for name in ("accepts_loss_kwargs", "peft_config"):
            self.model.__dict__.pop(name, None)
        if self.beneath is not None:
            self.model.peft_config = self.beneath
        return self.model

    # PEFT would switch, delete, train and save every adapter of the same name, those beneath the twins too

    @property
    def adapters_enabled(self) -> bool:
        """Whether candidates go through twins. False within `disable_adapter()`, of any tuner of the model."""
        return not any(twin.disable_adapters for twin in self.twins.values())

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        for twin in self.twins.values():
            twin.enable_adapters(enabled)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter.

        Raises:
            ValueError: if there is none of this name.
        """
        if adapter_name not in self.peft_config:
            raise ValueError(f"`adapter_name` is {adapter_name!r}, but the adapters are {list(self.peft_config)}.")
        del self.peft_config[adapter_name]
        for twin in self.twins.values():
            twin.delete_adapter(adapter_name)
        if adapter_name in self.active_adapters:  # each layer has chosen another by itself, of those that it has
            self.set_adapter(min(self.peft_config, default=[]))

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Let the twins of some adapters be trained, or not."""
        for twin in self.twins.values():
            twin.set_requires_grad(adapter_names, requires_grad)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        for twin in self.twins.values() if autocast_adapter_dtype else ():
            for projection in twin.twins_of(adapter_name):
                for owner in projection.modules():
                    for name, weight in list(owner.named_parameters(recurse=False)):
                        if weight.dtype in (torch.float16, torch.bfloat16):  # not `.data`, which a DTensor ignores
                            setattr(owner, name, nn.Parameter(weight.data.float(), weight.requires_grad))

    def _mark_only_adapters_as_trainable(self, model: nn.Module) -> None:
        twins = (twin for layer in self.twins.values() for twin in layer.twins_of())
        trained = {id(weight) for twin in twins for weight in twin.parameters()}
        for weight in model.parameters():
            if id(weight) not in trained:
                weight.requires_grad = False

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        config = cast(FocusConfig, self.peft_config[adapter_name])
        if config.add_bos is None:  # decided once, in a copy: what was given may make an adapter of another model
            config = copy.copy(config)
            config.add_bos = reads_bos(cast(PreTrainedModel, self.model), self.facts.bos)
            dict.__setitem__(self.peft_config, adapter_name, config)  # no other tuner's, even if we were imported anew
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        self._mark_only_adapters_as_trainable(model)  # PEFT lets those beneath train along

    @classmethod
    def _get_adapter_state_dict(cls, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        weights = super()._get_adapter_state_dict(*args, **kwargs)
        found = {name: weight for name, weight in weights.items() if ".focus_" in name}
        if kwargs["state_dict"] and not found:  # other processes of sharded training have none at all
            raise ValueError(
                "`state_dict` has no weight of the adapter by its own name, but "
                f"{next(iter(kwargs['state_dict']))!r}; it is of a compiled or wrapped model, or the adapter was "
                "unloaded. Save the `PeftModel` itself, without `state_dict`."
            )
        return found

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
    return cast(re.Match[str], PARAMETER.search(name))[1]
