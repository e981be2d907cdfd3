# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The PEFT tuner: adds a prompt bank and its hooks to a base model, and removes them."""

import copy
import inspect
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn

from ..architecture import find_vision_transformer
from ..architecture.load_adapter import CheckLoadedTensors, check_can_be_loaded, fill_from_file
from ..architecture.measured import measured
from ..architecture.names import check_adapter_name
from ..architecture.prepare_config import prepare_config
from ..architecture.saved_modules import fixed_parameters, wrap_heads
from ..config import GatedPromptConfig
from ..errors import UnsupportedOperationError
from ..files.layout import BANK
from .bank import MERGE_REFUSAL, PromptBank, find_bank
from .hooks import attach_hooks
from .mixed_batch import mixed_batch
from .scope import SwitchHead, first_by_position, forward_context


class GatedPromptModel(BaseTuner):
    """Gated prompt tuning of a frozen Vision Transformer. `peft.get_peft_model` creates it.

    Args:
        model: the base model, changed in place: it gets a child `gated_prompt` and forward hooks.
        peft_config: the config, or a dict of configs by adapter name.
        adapter_name: name of the first adapter.
        low_cpu_mem_usage: create the parameters on the meta device, to be filled from a file.
        state_dict: keys of an adapter, from PEFT. They are only passed on to `BaseTuner`.

    Raises:
        UnsupportedOperationError: the base already carries gated prompts, or transformers would lose the tensors of
            this adapter (see `load_adapter.py`).
        ArchitectureError, AdapterMismatchError, ConfigError: base, adapter and settings do not match.
        AdapterNameError: PEFT could not save or load an adapter of this name.
    """

    prefix: str = "gated_prompt_"
    tuner_layer_cls = PromptBank
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def __init__(
        self,
        model: nn.Module,
        peft_config: PeftConfig | dict[str, PeftConfig],
        adapter_name: str,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, torch.Tensor] | None = None,
    ) -> None:
        bank = find_bank(model)
        # get_peft_model passes a dict; inject_adapter_in_model passes a config, also to add a second adapter.
        if bank is not None and (isinstance(peft_config, dict) or adapter_name in bank.adapters):
            raise UnsupportedOperationError(
                f"this {type(model).__name__} already carries gated prompts ({', '.join(bank.adapters)}). Call "
                "add_adapter(name, config) on the PeftModel to add another adapter, or unload() it first."
            )
        if not isinstance(peft_config, dict):
            check_can_be_loaded(peft_config)
        super().__init__(model, peft_config, adapter_name, low_cpu_mem_usage=low_cpu_mem_usage, state_dict=state_dict)
        if not isinstance(peft_config, dict):
            fill_from_file(model, adapter_name, self.peft_config[adapter_name])

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Check everything that can be wrong with an adapter, then add it (see `peft.BaseTuner`)."""
        asked = self.peft_config[adapter_name]
        bank = getattr(model, BANK, None)
        vit = measured(find_vision_transformer(model, asked.target_modules)) if bank is None else bank.vit
        if asked.target_modules not in (None, vit.tower.path):
            raise UnsupportedOperationError(
                f"target_modules is {asked.target_modules!r}, but the adapters of {type(model).__name__} are in the "
                f"blocks {vit.tower.path!r}. All adapters of a model must use the same blocks."
            )
        config, own = copy.copy(asked), vars(asked).copy()
        if asked.filled_in:  # the caller passes one object to several bases, and these values belong to another
            vars(config).update(dict.fromkeys(asked.filled_in), filled_in=())
        config = prepare_config(config, model, vit)
        check_adapter_name(adapter_name, model, config.modules_to_save or [])
        if not asked.filled_in:  # keep the caller's object, as PEFT does
            vars(asked).update(vars(config))
            config = asked
        self.peft_config[adapter_name] = config
        fixed = fixed_parameters(model, config.modules_to_save or [])
        # Adding an adapter must not change which parameters of the others are trainable. PEFT before 0.21 changes it,
        # and every PEFT does for a head that adapters share.
        before = [] if bank is None else [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        if bank is None:
            if not any(isinstance(module, BaseTunerLayer) for module in model.modules()):
                # PEFT 0.21 freezes the base only if it has no adapter yet, and the bank counts as one.
                model.requires_grad_(False)
            bank = PromptBank(vit)
            model.add_module(BANK, bank)
            attach_hooks(bank, vit)
            bank.handles.append(model.register_load_state_dict_pre_hook(CheckLoadedTensors(bank)))
        heads, config.modules_to_save = config.modules_to_save or [], None
        try:
            super().inject_adapter(model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage, state_dict)
            config.modules_to_save = heads
            wrap_heads(model, fixed, adapter_name, config.inference_mode, adapter_name in self.active_adapters)
            for path in heads:
                head = model.get_submodule(path)
                if not any(isinstance(hook, SwitchHead) for hook in head._forward_hooks.values()):
                    head.register_forward_hook(SwitchHead(bank, path), with_kwargs=True)
                    if "x" in inspect.signature(ModulesToSaveWrapper.forward).parameters:
                        head.register_forward_pre_hook(first_by_position, with_kwargs=True)
        except Exception:
            vars(asked).update(own)
            bank.adapters.pop(adapter_name, None)
            if not bank.adapters:
                self._detach(model)
            raise
        finally:
            for parameter, trainable in before:
                parameter.requires_grad_(trainable)

    @staticmethod
    def _check_target_module_exists(peft_config: PeftConfig, key: str) -> bool:
        return key == BANK

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict[str, Any]) -> PeftConfig:
        return peft_config

    def _create_and_replace(
        self,
        peft_config: GatedPromptConfig,
        adapter_name: str,
        target: PromptBank,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        target.update_layer(adapter_name, peft_config)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Activate one adapter and its head.

        Raises:
            UnsupportedOperationError: more than one name was given.
        """
        if isinstance(adapter_name, list) and len(adapter_name) > 1:
            self.model.get_submodule(BANK).set_adapter(adapter_name)  # raises before the heads are switched
        super().set_adapter(adapter_name, inference_mode=inference_mode)

    _enable_peft_forward_hooks = forward_context

    def mixed_batch(self, adapter_names: list[str]) -> AbstractContextManager[None]:
        """Compute each image with its own adapter (see `mixed_batch.mixed_batch`)."""
        return mixed_batch(self.model.get_submodule(BANK), adapter_names)

    def _check_merge_allowed(self) -> None:
        raise UnsupportedOperationError(MERGE_REFUSAL)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        """Remove exactly what this tuner added: the base model is then bit for bit as before.

        PEFT's own version would leave the trained head in the base, and remove LoRA layers below the prompts.
        """
        if merge:
            self._check_merge_allowed()
        self._detach(self.model)
        self._restore_heads(self.model)
        if hasattr(self.model, "peft_config"):
            del self.model.peft_config
        return self.model

    def enable_adapter_layers(self) -> None:
        """Enable the adapters after `disable_adapter_layers`."""
        for module in self._own_modules():
            module.enable_adapters(True)

    def disable_adapter_layers(self) -> None:
        """Disable prompts and trained heads. LoRA layers below the prompts are part of the base and stay enabled."""
        for module in self._own_modules():
            module.enable_adapters(False)

    def _own_modules(self) -> list[Any]:
        return [module for module in self.model.modules() if isinstance(module, (PromptBank, ModulesToSaveWrapper))]

    @staticmethod
    def _restore_heads(model: nn.Module) -> None:
        """Restore the base's own heads. PEFT would leave the trained ones, and fails on heads without a `weight`."""
        for name, module in list(model.named_modules()):
            if isinstance(module, ModulesToSaveWrapper):
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, module.original_module)

    @staticmethod
    def _detach(model: nn.Module) -> None:
        bank: PromptBank = getattr(model, BANK)
        for handle in bank.handles:
            handle.remove()
        delattr(model, BANK)

    def _get_module_names_tied_with_embedding(self) -> list[str]:
        """Nothing adapted is tied to word embeddings. PEFT's version fails on models that have none (FLAVA)."""
        return []

    def add_weighted_adapter(self, *_: Any, **__: Any) -> None:
        """Refuse to combine adapters, as other PEFT methods can.

        Raises:
            UnsupportedOperationError: always.
        """
        raise UnsupportedOperationError(
            "add_weighted_adapter is not defined for gated prompts: tokens of separately trained adapters do not "
            "correspond, so their mean is meaningless. Keep both adapters and choose one per image "
            "(adapter_names=[...]), or average checkpoints of one run with gated_prompt.AveragedAdapter"
        )
