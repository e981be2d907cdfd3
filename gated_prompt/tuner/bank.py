# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The bank: the tensors of all adapters on one model, and the prompts, gates and temperatures that they stand for.

There is one bank per model, a child of its root named `gated_prompt`, so that the keys of an adapter file hold no
path into the backbone and survive renamings there. It holds no state of a forward (`forward.py`).
"""

import hashlib
from typing import Any, Protocol

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..architecture import VisionTransformer
from ..config import GatedPromptConfig
from ..errors import UnsupportedOperationError
from ..files.layout import GATE_LOGITS, PARAMETERS, TEMPERATURES, TOKENS, TOKENS_A, TOKENS_B
from .low_rank import factor_bound, factorise
from .plan import Plan, make_plan

MERGE_REFUSAL = (
    "gated prompts cannot be merged into the weights: they are extra tokens, not a change of a matrix. "
    "Keep the adapter beside the base model, or call unload() to get the base model back"
)


class Removable(Protocol):
    """A handle of a hook, as `register_forward_hook` returns it."""

    def remove(self) -> None: ...


class Fitted(Protocol):
    """What has to follow when adapters come and go (`skip.py`)."""

    def fit(self) -> None: ...


class PromptBank(nn.Module, BaseTunerLayer):
    """Holds, for each adapter name:

    - `gated_prompt_tokens` (S, P, D), S = 1, or K when deep; with a `prompt_rank` r instead
      `gated_prompt_tokens_a` (S, P, r) and `gated_prompt_tokens_b` (S, r, D);
    - `gated_prompt_gate_logits` (G,), one for each gated block, where gates are learned;
    - `gated_prompt_temperatures` (K,), one for each of the K blocks that the prompts pass, where they are learned.
    """

    adapter_layer_names = PARAMETERS
    other_param_names = ("plans", "fresh_prompts")

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        self.gated_prompt_tokens = nn.ParameterDict()
        self.gated_prompt_tokens_a = nn.ParameterDict()
        self.gated_prompt_tokens_b = nn.ParameterDict()
        self.gated_prompt_gate_logits = nn.ParameterDict()
        self.gated_prompt_temperatures = nn.ParameterDict()
        self.plans: dict[str, Plan] = {}
        self.fresh_prompts: dict[str, str | None] = {}  # fingerprints of the prompts as they started
        self.handles: list[Removable] = []
        self.skips: Fitted | None = None
        self.can_be_passive: frozenset[int] = frozenset()  # blocks; set when the hooks are put on
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter: list[str] = []
        # No submodules: these would appear twice in the model's state dict.
        self.vit, self.blocks = vit, list(vit.blocks)
        self._frozen = [*vit.before, *(child for block in vit.blocks for child in block.children())]

    # The adapters.

    def update_layer(self, adapter_name: str, config: GatedPromptConfig) -> None:
        """Add an adapter, with its parameters on the device and in the precision of the blocks.

        Prompts start uniform in (-v, v), v = sqrt(6 / (3 p p + D)), the bound of the patch projection's Xavier
        start, as in the official code (a product of low rank with the same variance); gate logits at `gate_init`;
        temperatures at `temperature_init`.
        """
        vit = self.vit
        plan = make_plan(adapter_name, config, len(vit.blocks), self.can_be_passive)
        bound, like = vit.prompt_bound, self._like()
        factor = factor_bound(bound, config.prompt_rank or 1)
        starts = {
            TOKENS: (-bound, bound),
            TOKENS_A: (-factor, factor),
            TOKENS_B: (-factor, factor),
            GATE_LOGITS: (config.gate_init,) * 2,
            TEMPERATURES: (config.temperature_init,) * 2,
        }
        for name in PARAMETERS:  # as in PEFT, an adapter of the same name is replaced: leave nothing
            if adapter_name in getattr(self, name):
                del getattr(self, name)[adapter_name]
        for name, shape in config.parameter_shapes(plan.num_layers, vit.hidden_size).items():
            start = torch.empty(shape, dtype=like.dtype, device=like.device).uniform_(*starts[name])
            getattr(self, name)[adapter_name] = nn.Parameter(start)
        self.fresh_prompts[adapter_name] = self._fingerprint(adapter_name)
        self.plans[adapter_name] = plan  # last: whoever finds a plan finds its tensors
        self.fit_skips()
        self.set_adapter(self.active_names, inference_mode=config.inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget one adapter (see `peft.BaseTuner`)."""
        super().delete_adapter(adapter_name)
        self.fit_skips()

    def fit_skips(self) -> None:
        """Let blocks be skipped above the lowest `read_from` of the adapters that there are."""
        if self.skips is not None:
            self.skips.fit()

    @property
    def active_names(self) -> list[str]:
        """Names of the active adapters: one, or none after the last was deleted."""
        return self._active_adapter

    @property
    def active_plans(self) -> tuple[Plan, ...]:
        """The plan of the active adapter; empty when adapters are disabled or none is active."""
        names = self._active_adapter
        plan = None if self._disable_adapters or not names else self.plans.get(names[0])
        return () if plan is None else (plan,)

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
        super().set_adapter(names, inference_mode=inference_mode)

    def train(self, mode: bool = True) -> "PromptBank":
        """Set the mode; with `eval_backbone` the inside of the frozen blocks stays in eval mode.

        The root trains its children in their order and the bank is the last of them, so this has the last word.
        The blocks themselves keep the mode of the root: transformers checkpoints activations only in train mode.
        """
        super().train(mode)
        plan = self.plans.get(self._active_adapter[0]) if self._active_adapter else None
        if mode and plan is not None and plan.config.eval_backbone:
            for module in self._frozen:
                module.eval()
        return self

    # What the tensors of one adapter stand for.

    def tokens(self, plan: Plan, block: int) -> torch.Tensor:
        """Prompt tokens (P, D) that enter at this block."""
        row = block - plan.first if plan.config.deep else 0
        if plan.config.prompt_rank is None:
            return self.gated_prompt_tokens[plan.name][row]
        return self.gated_prompt_tokens_a[plan.name][row] @ self.gated_prompt_tokens_b[plan.name][row]

    def gate(self, plan: Plan, row: int) -> torch.Tensor:
        """Gate value g = sigmoid(logit) of this row as a scalar tensor.

        With `hard_gates` it is 0 or 1: logit > 0 in eval mode; while training logit + noise > 0, the noise logistic,
        so that 1 has probability g, with the gradient of sigmoid(logit + noise) (straight through). One draw serves
        the whole batch. This is the Gumbel-sigmoid of the paper's Table 4, at Gumbel temperature 1.
        """
        logit = self.gated_prompt_gate_logits[plan.name][row]
        if not plan.config.hard_gates:
            return torch.sigmoid(logit)
        if not self.training:
            return (logit > 0).to(logit.dtype)
        soft = torch.sigmoid(logit + torch.logit(torch.rand_like(logit), eps=1e-6))
        return (soft > 0.5).to(soft.dtype) + (soft - soft.detach())

    def inverse_temperature(self, plan: Plan, block: int) -> torch.Tensor | float | None:
        """1 / tau of this block as a scalar, or None where it is exactly 1 for good."""
        if not plan.config.temperature:
            return None if plan.config.temperature_init == 1.0 else 1.0 / plan.config.temperature_init
        temperature = self.gated_prompt_temperatures[plan.name][block - plan.first]
        if torch.compiler.is_exporting():  # see project_temperatures
            temperature = temperature.clamp(*plan.config.temperature_range)
        return 1.0 / temperature

    def project_temperatures(self, plan: Plan) -> None:
        """Move the temperatures into their range, outside autograd.

        A clamp inside the graph would cut the gradient outside the range, and a temperature that stepped out
        could never come back. An exported program cannot change its weights and needs no gradient: it has a clamp.
        """
        if plan.config.temperature and not torch.compiler.is_exporting():
            self.gated_prompt_temperatures[plan.name].data.clamp_(*plan.config.temperature_range)

    # Where prompts start.

    def start_from(self, plan: Plan, tokens: torch.Tensor) -> None:
        """Let the prompts start from `tokens` (S, P, D); of low rank from what comes nearest to them."""
        starts = {TOKENS: tokens}
        if plan.config.prompt_rank is not None:
            starts = dict(zip((TOKENS_A, TOKENS_B), factorise(tokens, plan.config.prompt_rank), strict=True))
        with torch.no_grad():
            for name, start in starts.items():
                getattr(self, name)[plan.name].copy_(start)
        self.fresh_prompts[plan.name] = self._fingerprint(plan.name)

    def is_trained(self, plan: Plan) -> bool:
        """Whether the prompts are no longer what they started from: they were trained, loaded or set."""
        fresh = self.fresh_prompts.get(plan.name)
        return fresh is None or fresh != self._fingerprint(plan.name)

    def _fingerprint(self, adapter_name: str) -> str | None:
        dicts = [getattr(self, name) for name in (TOKENS, TOKENS_A, TOKENS_B)]
        parts = [tensors[adapter_name].detach() for tensors in dicts if adapter_name in tensors]
        if any(part.is_meta for part in parts):  # to be filled from a file
            return None
        return hashlib.sha256(b"".join(part.float().cpu().numpy().tobytes() for part in parts)).hexdigest()

    # What PEFT asks of a layer, and a bank is none.

    def _like(self) -> torch.Tensor:
        """A tensor with the device and the precision of the blocks.

        accelerate keeps offloaded weights on the meta device, and knows where they are used.
        """
        found = next((p for p in self.blocks[0].parameters() if p.is_floating_point()), torch.empty(0))
        hooks = [getattr(module, "_hf_hook", None) for module in self.blocks[0].modules()] if found.is_meta else []
        devices = [device for hook in hooks if (device := getattr(hook, "execution_device", None)) is not None]
        return torch.empty(0, dtype=found.dtype, device=devices[0]) if devices else found

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
    def weight(self) -> torch.Tensor:
        """None of these: PEFT's own property would ask the wrapped layer, which is the bank itself, without end."""
        raise AttributeError(f"{type(self).__name__} wraps no layer and has no weight or bias")

    bias = weight

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
