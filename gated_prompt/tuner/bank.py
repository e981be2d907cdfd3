# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The bank: what an adapted model has more than its base, as PEFT wants it.

There is one bank a model, a child of its root named `gated_prompt`, so that the keys of an adapter file hold no
path into the backbone and survive renamings there. What the numbers do is in
`block_hooks.py`.
"""

from typing import TYPE_CHECKING, Any, Protocol

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..config import GatedPromptConfig
from ..errors import UnsupportedOperationError
from ..files.layout import PARAMETERS
from .architecture import VisionTransformer
from .parameters import PromptParameters
from .passage import CachedKeysValues, Passage, cached_keys_values, plan_passage
from .plan import Plan, make_plan

if TYPE_CHECKING:
    from .attention import AttentionRoute
    from .folding import Folded

MERGE_REFUSAL = (
    "gated prompts cannot be merged into the weights: they are extra tokens, not a change of a matrix. "
    "Keep the adapter beside the base model, or call unload() to get the base model back"
)


class Removable(Protocol):
    """A handle of a hook, as `register_forward_hook` returns it."""

    def remove(self) -> None: ...


class PromptBank(PromptParameters, BaseTunerLayer):
    """The parameters as a layer of PEFT, and what the hooks share during a forward."""

    adapter_layer_names = PARAMETERS
    other_param_names = ("plans", "fresh_prompts", "keys_values")

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        self.plans: dict[str, Plan] = {}
        self.handles: list[Removable] = []
        # How the prompts pass (passage.py): what is known of the model, and what the last forward decided.
        self.routes: dict[int, AttentionRoute] = {}
        self.fast_path = True  # off: prompts stand among the tokens in every block
        self.attentions_wanted = False
        self.passage = Passage()
        self.sequence_length = -1  # tokens without prompts
        self.keys_only: torch.Tensor | None = None  # (B or 1, P, D) inside a passive block
        self.closed_in_training: frozenset[int] | None = None
        self.keys_values: dict[str, CachedKeysValues] = {}
        self.kept: CachedKeysValues | None = None
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter: list[str] = []
        # Plain lists: as submodules they would appear twice in the model's state dict.
        self.blocks = list(vit.blocks)
        self.queries = list(vit.queries)
        self.folded: Folded | None = None
        self._frozen = [*vit.before, *(child for block in vit.blocks for child in block.children())]

    def update_layer(self, adapter_name: str, config: GatedPromptConfig, vit: VisionTransformer) -> None:
        """Add an adapter, with its parameters on the device and in the precision of the blocks."""
        self.plans[adapter_name] = make_plan(adapter_name, config, len(vit.blocks))
        self.make_parameters(self.plans[adapter_name], vit, self._like())
        self.set_adapter(self.active_names, inference_mode=config.inference_mode)

    @property
    def active_names(self) -> list[str]:
        """Names of the active adapters: one, or none after the last was deleted."""
        return self._active_adapter

    def _like(self) -> torch.Tensor:
        """A tensor with the device and the precision of the blocks."""
        return next((p for p in self.blocks[0].parameters() if p.is_floating_point()), torch.empty(0))

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Called by PEFT after it filled an adapter that was made on the meta device.

        PEFT looks at the weight of the wrapped layer, and the bank wraps none. The precision stays that of the file.
        """
        target = device if device is not None else self._like().device
        for name in self.adapter_layer_names:
            tensors = getattr(self, name)
            if adapter_name in tensors and not tensors[adapter_name].is_meta:
                tensors[adapter_name].data = tensors[adapter_name].data.to(target)

    @property
    def plan(self) -> Plan | None:
        """The plan of the active adapter; None when adapters are disabled or none is active."""
        return None if self._disable_adapters else self._active_plan()

    def _active_plan(self) -> Plan | None:
        return self.plans.get(self.active_names[0]) if self.active_names else None

    def begin(self, plan: Plan, hidden: torch.Tensor) -> None:
        """Prepare a forward, at block k, whose `hidden` states (B, N, D) have no prompts yet."""
        self.project_temperatures(plan)
        self.sequence_length = hidden.shape[1]
        self.passage = plan_passage(self, plan, hidden.dtype)
        self.kept = cached_keys_values(self, plan)

    def is_passive(self, plan: Plan, block: int) -> bool:
        """Whether the prompts are keys and values only in this block, in the current forward."""
        return block >= plan.config.insert_at and block in self.passage.passive

    def train(self, mode: bool = True) -> "PromptBank":
        """Set the mode; with `eval_backbone` the inside of the frozen blocks stays in eval mode.

        The root trains its children in their order and the bank is the last of them, so this has the last word.
        The blocks themselves keep the mode of the root: transformers checkpoints activations only in train mode.
        """
        if mode:
            self.refuse_folded("train")
        super().train(mode)
        self.closed_in_training = None
        self.keys_values.clear()
        plan = self._active_plan()
        if mode and plan is not None and plan.config.eval_backbone:
            for module in self._frozen:
                module.eval()
        return self

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Activate one adapter.

        Raises:
            UnsupportedOperationError: two names were given; prompts of two adapters do not add up.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        if len(names) > 1:
            raise UnsupportedOperationError(
                f"gated prompts can have one active adapter, got {names}; activate one of them with set_adapter(name)"
            )
        if names != self.active_names:
            self.refuse_folded("switch to another adapter of")
        super().set_adapter(names, inference_mode=inference_mode)

    def enable_adapters(self, enabled: bool) -> None:
        """Use the adapters, or compute what the base computes.

        Raises:
            UnsupportedOperationError: the base holds folded temperatures.
        """
        if not enabled:
            self.refuse_folded("disable the adapter of")
        super().enable_adapters(enabled)

    def refuse_folded(self, what: str) -> None:
        """Raise if the query weights of the base hold an adapter's temperatures.

        Raises:
            UnsupportedOperationError: they do.
        """
        if self.folded is not None:
            raise UnsupportedOperationError(
                f"cannot {what} a model whose query weights hold the temperatures of {self.folded.name!r}; "
                "call gated_prompt.unfold_temperatures(model) first"
            )

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse.

        Raises:
            UnsupportedOperationError: always.
        """
        raise UnsupportedOperationError(MERGE_REFUSAL)

    def unmerge(self) -> None:
        """Refuse, as nothing can have been merged.

        Raises:
            UnsupportedOperationError: always.
        """
        raise UnsupportedOperationError(MERGE_REFUSAL)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Never called: the bank holds parameters, the hooks use them.

        Raises:
            UnsupportedOperationError: always.
        """
        raise UnsupportedOperationError("the prompt bank is no layer; call the model that holds it")


def find_bank(model: nn.Module) -> PromptBank | None:
    """The bank on a base model, or below whatever wraps it; None where there are no gated prompts."""
    return next((module for module in model.modules() if isinstance(module, PromptBank)), None)
