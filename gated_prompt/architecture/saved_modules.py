# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The modules that each adapter has a trained copy of: heads, and others in `modules_to_save`."""

from collections.abc import Iterable
from typing import Any

from peft.utils import ModulesToSaveWrapper
from torch import nn

from ..errors import ArchitectureError


class SavedModule(ModulesToSaveWrapper):
    """PEFT's wrapper of a module that each adapter has a trained copy of. Parameters in `fixed` stay frozen in all.

    PEFT makes every parameter of the active copy trainable, also a table of positions that is fixed by design.
    """

    def __init__(self, module: nn.Module, adapter_name: str, fixed: frozenset[str]) -> None:
        self.fixed = fixed  # names inside the module
        super().__init__(module, adapter_name)

    def _freeze_fixed(self) -> None:
        for trained in self.modules_to_save.values():
            for name, parameter in trained.named_parameters():
                if name in self.fixed:
                    parameter.requires_grad_(False)

    def update(self, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        super().update(adapter_name, *args, **kwargs)
        self._freeze_fixed()

    def set_adapter(self, *args: Any, **kwargs: Any) -> None:
        super().set_adapter(*args, **kwargs)
        self._freeze_fixed()

    def enable_adapters(self, enabled: bool) -> None:
        super().enable_adapters(enabled)
        self._freeze_fixed()

    def set_requires_grad(self, *args: Any, **kwargs: Any) -> None:
        super().set_requires_grad(*args, **kwargs)
        self._freeze_fixed()


def fixed_parameters(root: nn.Module, paths: Iterable[str]) -> dict[str, frozenset[str]]:
    """Return, for each module, the names of those of its parameters that are frozen beside others that are not."""
    fixed = {}
    for path in paths:
        trainable = {name: p.requires_grad for name, p in root.get_submodule(path).named_parameters()}
        fixed[path] = frozenset(name for name, on in trainable.items() if any(trainable.values()) and not on)
    return fixed


def wrap_heads(
    root: nn.Module, fixed: dict[str, frozenset[str]], adapter_name: str, inference_mode: bool, active: bool
) -> None:
    """Give the adapter its own copy of each module, as PEFT does for `modules_to_save`. `fixed`: see `SavedModule`.

    PEFT would match every path that ends with one of these: `head` also matches `auxiliary_head`, and the `head`
    inside a `head`, which would be copied twice and lost in the file.

    Raises:
        ArchitectureError: PyTorch cannot copy a module.
    """
    for path, names in fixed.items():
        module, (parent, _, name) = root.get_submodule(path), path.rpartition(".")
        if isinstance(module, ModulesToSaveWrapper):
            module.update(adapter_name)
            module.set_adapter(module.active_adapter, inference_mode=inference_mode)
            continue
        try:
            wrapper = SavedModule(module, adapter_name, names)
        except RuntimeError as error:
            raise ArchitectureError(
                f"PyTorch cannot copy {path} ({type(module).__name__}), which is to be trained: {error}. Use "
                "torch.nn.utils.parametrizations.weight_norm instead of torch.nn.utils.weight_norm, and prune.remove "
                "after pruning."
            ) from error
        wrapper.set_adapter(adapter_name if active else [], inference_mode=inference_mode)
        setattr(root.get_submodule(parent), name, wrapper)
