# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The prompt bank: the parameters of all adapters on one model, and the prompts, gates and temperatures they encode.

Each model has one bank, a child module of its root named `gated_prompt`. Adapter files therefore contain no paths into
the backbone and survive when its modules are renamed. The bank holds no state of a forward (`forward.py`).
"""

import hashlib
from typing import Any, Protocol

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..architecture import VisionTransformer
from ..architecture.adapter import Adapter, make_adapter
from ..config import GatedPromptConfig
from ..errors import GatedPromptError, UnsupportedOperationError
from ..files.layout import GATE_LOGITS, HEAD_GATES, PARAMETERS, TEMPERATURES, TOKENS, TOKENS_A, TOKENS_B
from ..files.low_rank import factor_bound, factorise
from .forward import PromptTensors
from .request import LOCAL

MERGE_REFUSAL = (
    "gated prompts cannot be merged into the weights: they are extra tokens, not a change of a matrix. "
    "Keep the adapter beside the base model, or call unload() to get the base model back"
)


class Removable(Protocol):
    """A handle of a hook, as `register_forward_hook` returns it."""

    def remove(self) -> None: ...


class PromptBank(PromptTensors, BaseTunerLayer):
    """Holds, by adapter name:

    - `gated_prompt_tokens` (S, P, D) with S = 1, or S = K when deep. With a `prompt_rank` r instead
      `gated_prompt_tokens_a` (S, P, r) and `gated_prompt_tokens_b` (S, r, D);
    - `gated_prompt_gate_logits` (G,), one per gated block, if gates are learned;
    - `gated_prompt_temperatures` (K,), one for each of the K blocks with prompts, if temperatures are learned;
    - `gated_prompt_head_gates` (K, H), one for each head of these blocks, with zero start (`zero_start.py`).
    """

    kinds = adapter_layer_names = PARAMETERS
    other_param_names = ("adapters", "fresh_prompts")

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        self.fresh_prompts: dict[str, frozenset[str]] = {}  # fingerprints of the initial prompts in each precision
        self.handles: list[Removable] = []
        self.can_be_passive: frozenset[int] = frozenset()  # blocks. Set when the hooks are attached
        self.merged_adapters: list[str] = []
        # In lists, not as submodules, which would appear twice in the model's state dict.
        self.vit, self.blocks = vit, list(vit.blocks)
        self.in_features = self.out_features = vit.hidden_size  # as layers of other PEFT methods report them
        self._frozen_modules = [*vit.before, *(child for block in vit.blocks for child in block.children())]

    # Adding, deleting and activating adapters.

    def update_layer(self, adapter_name: str, config: GatedPromptConfig) -> None:
        """Add an adapter, with its parameters on the device and in the precision of the blocks.

        Initial values: prompts uniform in (-v, v), v = sqrt(6 / (3 p p + D)), the patch projection's Xavier bound,
        as in the official code (a low-rank product gets the same variance). Gate logits `gate_init`. Temperatures
        `temperature_init`. Head gates 0.
        """
        vit = self.vit
        adapter = make_adapter(adapter_name, config, len(vit.blocks), self.can_be_passive)
        bound, like = vit.prompt_bound, self._like()
        factor = factor_bound(bound, config.prompt_rank or 1)
        starts = {
            TOKENS: (-bound, bound),
            TOKENS_A: (-factor, factor),
            TOKENS_B: (-factor, factor),
            GATE_LOGITS: (config.gate_init,) * 2,
            TEMPERATURES: (config.temperature_init,) * 2,
            HEAD_GATES: (0.0, 0.0),
        }
        for name in PARAMETERS:  # as in PEFT, an adapter of the same name is replaced completely
            if adapter_name in getattr(self, name):
                del getattr(self, name)[adapter_name]
        for name, shape in config.parameter_shapes(adapter.num_layers, vit.hidden_size).items():
            start = torch.empty(shape, dtype=like.dtype, device=like.device).uniform_(*starts[name])
            getattr(self, name)[adapter_name] = nn.Parameter(start)
        self.fresh_prompts[adapter_name] = self._fingerprints(adapter_name)
        self.adapters[adapter_name] = adapter  # last: a thread that sees the adapter also finds its tensors
        self.set_adapter(self.active_names, inference_mode=config.inference_mode)

    @property
    def active_names(self) -> list[str]:
        """Names of the active adapters: one, or none after the last adapter was deleted."""
        return self._active_adapter

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Activate one adapter.

        Raises:
            UnsupportedOperationError: more than one name. The prompts of two adapters cannot be added.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        if len(names) > 1:
            raise UnsupportedOperationError(
                f"gated prompts can have one active adapter, got {names}. Activate one of them with set_adapter(name)."
            )
        before = self._evaluates_backbone
        super().set_adapter(names, inference_mode=inference_mode)
        LOCAL.switches += 1
        if self.training and self._evaluates_backbone is not before:
            self.train()

    @property
    def _evaluates_backbone(self) -> bool | None:
        adapter = self.adapters.get(self._active_adapter[0]) if self._active_adapter else None
        return None if adapter is None else adapter.config.eval_backbone

    def enable_adapters(self, enabled: bool) -> None:
        """Enable or disable the adapters of the bank (see `peft.BaseTunerLayer`)."""
        super().enable_adapters(enabled)
        LOCAL.switches += 1

    def train(self, mode: bool = True) -> "PromptBank":
        """Set the mode. With `eval_backbone` the modules inside the frozen blocks stay in eval mode.

        Not those of trained adapters of other kinds, such as the dropout of LoRA. The root sets the mode of its
        children in order and the bank is the last, so nothing overrides this afterwards. The blocks themselves follow
        the root: transformers checkpoints activations only in training mode.
        """
        super().train(mode)
        if not mode or self._evaluates_backbone is None:
            return self
        for module in self._frozen_modules:
            module.train(not self._evaluates_backbone)
        others = (other for module in self._frozen_modules for other in module.modules())
        for layer in (other for other in others if isinstance(other, BaseTunerLayer)):
            if any(parameter.requires_grad for parameter in layer.parameters()):
                layer.training = True
                for name, child in layer.named_children():
                    child.train(name != "base_layer" or not self._evaluates_backbone)
        return self

    # Initial prompts.

    def start_from(self, adapter: Adapter, tokens: torch.Tensor) -> None:
        """Set the initial prompts to `tokens` (S, P, D), or to their best approximation of rank `prompt_rank`."""
        starts = {TOKENS: tokens}
        if adapter.config.prompt_rank is not None:
            starts = dict(zip((TOKENS_A, TOKENS_B), factorise(tokens, adapter.config.prompt_rank), strict=True))
        with torch.no_grad():
            for name, start in starts.items():
                getattr(self, name)[adapter.name].copy_(start)
        self.fresh_prompts[adapter.name] = self._fingerprints(adapter.name)

    def is_trained(self, adapter: Adapter) -> bool:
        """Whether the prompts differ from their initial values: they were trained, loaded or set."""
        now = self._fingerprints(adapter.name, (torch.float32,))
        return not now or not now <= self.fresh_prompts.get(adapter.name, frozenset())

    def _fingerprints(
        self, adapter_name: str, precisions: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16)
    ) -> frozenset[str]:
        """Return a hash of the prompts for each precision that they may be cast to. Empty if they are yet to come."""
        dicts = [getattr(self, name) for name in (TOKENS, TOKENS_A, TOKENS_B)]
        parts = [tensors[adapter_name].detach() for tensors in dicts if adapter_name in tensors]
        if any(part.is_meta for part in parts):  # to be filled from a file
            return frozenset()
        values = torch.cat([part.flatten() for part in parts]).cpu()
        return frozenset(hashlib.sha256(values.to(to).float().numpy().tobytes()).hexdigest() for to in precisions)

    # What PEFT requires of a tuner layer, although the bank wraps no layer.

    def _like(self) -> torch.Tensor:
        """An empty tensor with the device and precision of the blocks.

        accelerate keeps offloaded weights on the meta device. Its hook knows the device on which they run.
        """
        found = next((p for p in self.blocks[0].parameters() if p.is_floating_point()), torch.empty(0))
        hooks = [getattr(module, "_hf_hook", None) for module in self.blocks[0].modules()] if found.is_meta else []
        devices = [device for hook in hooks if (device := getattr(hook, "execution_device", None)) is not None]
        return torch.empty(0, dtype=found.dtype, device=devices[0]) if devices else found

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Called by PEFT after it filled an adapter that was created on the meta device.

        PEFT's own version takes the device from the weight of the wrapped layer, which the bank does not have. The
        precision stays that of the file.
        """
        target = device if device is not None else self._like().device
        for name in self.adapter_layer_names:
            tensors = getattr(self, name)
            if adapter_name in tensors and not tensors[adapter_name].is_meta:
                tensors[adapter_name].data = tensors[adapter_name].data.to(target)

    @property
    def weight(self) -> torch.Tensor:
        """Not available: PEFT's own property would read it from the wrapped layer, here the bank itself, forever."""
        raise AttributeError(f"{type(self).__name__} wraps no layer and has no weight or bias")

    bias = weight

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse to merge, and as `unmerge` to undo what cannot have been done.

        Raises:
            UnsupportedOperationError: always.
        """
        raise UnsupportedOperationError(MERGE_REFUSAL)

    unmerge = merge

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Not called by any model: the bank holds parameters, and the hooks use them.

        Raises:
            UnsupportedOperationError: always.
        """
        raise UnsupportedOperationError("the prompt bank is not a layer. Call the model that holds it.")


def find_banks(model: nn.Module) -> dict[str, PromptBank]:
    """Return the banks in a model by the path of the base model that has each."""
    modules = model.named_modules()
    return {path.rpartition(".")[0]: module for path, module in modules if isinstance(module, PromptBank)}


def find_bank(model: nn.Module) -> PromptBank | None:
    """Return the bank of a base model, also from inside a wrapper. None if it has no gated prompts.

    Raises:
        GatedPromptError: there are several.
    """
    found = find_banks(model)
    if len(found) > 1:
        raise GatedPromptError(
            f"this {type(model).__name__} contains {len(found)} models with gated prompts, at "
            f"{', '.join(map(repr, found))}. Call this with one of them."
        )
    return next(iter(found.values()), None)
