# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The parameters of all adapters on one model: prompt tokens, gate logits and temperatures.

There is one bank a model, a child of its root named `gated_prompt`, so that the keys of an adapter file hold no
path into the backbone and survive renamings there. What the numbers do is in `hooks.py`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from .architecture import VisionTransformer
from .config import GatedPromptConfig
from .config_file import fingerprint
from .errors import UnsupportedOperationError
from .layout import (
    GATE_LOGITS,
    PARAMETERS,
    TEMPERATURES,
    TOKENS,
    TOKENS_A,
    TOKENS_B,
    gated_block_indices,
    parameter_shapes,
)
from .low_rank import factor_bound, factorise
from .passage import CachedKeysValues, Passage, cached_keys_values, plan_passage

if TYPE_CHECKING:
    from .folding import Folded
    from .key_values import AttentionRoute

MERGE_REFUSAL = (
    "gated prompts cannot be merged into the weights: they are extra tokens, not a change of a matrix. "
    "Keep the adapter beside the base model, or call unload() to get the base model back"
)


class Removable(Protocol):
    """A handle of a hook, as `register_forward_hook` returns it."""

    def remove(self) -> None: ...


@dataclass(frozen=True)
class Plan:
    """What the hooks need to know of one adapter; constants, while the tensors stay in the bank.

    `prompts`: the slice of the token axis that holds the prompts; `gate_rows`: row of `gate_logits` by block.
    """

    name: str
    config: GatedPromptConfig
    num_layers: int
    prompts: slice
    gate_rows: dict[int, int]

    @property
    def blocks(self) -> range:
        """The blocks that the prompts pass."""
        return range(self.config.insert_at, self.num_layers)


class PromptBank(nn.Module, BaseTunerLayer):
    """Holds, for each adapter name:

    - `gated_prompt_tokens` (S, P, D), S = 1, or L - k when deep; with a `prompt_rank` r instead
      `gated_prompt_tokens_a` (S, P, r) and `gated_prompt_tokens_b` (S, r, D);
    - `gated_prompt_gate_logits` (G,), one for each gated block, where gates are learned;
    - `gated_prompt_temperatures` (L - k,), one for each block from k on, where temperatures are learned.
    """

    adapter_layer_names = PARAMETERS
    other_param_names = ("plans", "fresh_prompts", "keys_values")

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
        """Make the parameters of a new adapter, on the device and in the precision of the blocks.

        Prompts start uniform in (-v, v), v = sqrt(6 / (3 p p + D)), the bound of the patch projection's Xavier
        start, as in the official code (a product of low rank with the same variance); gate logits at `gate_init`;
        temperatures at `temperature_init`.
        """
        num_layers = len(vit.blocks)
        shapes = parameter_shapes(config, num_layers, vit.hidden_size)
        bound = vit.prompt_bound
        factor = factor_bound(bound, config.prompt_rank or 1)
        like = self._like()
        starts = {
            TOKENS: (-bound, bound),
            TOKENS_A: (-factor, factor),
            TOKENS_B: (-factor, factor),
            GATE_LOGITS: (config.gate_init,) * 2,
            TEMPERATURES: (config.temperature_init,) * 2,
        }
        for name in self.adapter_layer_names:  # as in PEFT, an adapter of the same name is replaced: leave nothing
            if adapter_name in getattr(self, name):
                del getattr(self, name)[adapter_name]
        for name, shape in shapes.items():
            start = torch.empty(shape, dtype=like.dtype, device=like.device).uniform_(*starts[name])
            getattr(self, name)[adapter_name] = nn.Parameter(start)
        first, gated = config.num_prefix_tokens or 0, gated_block_indices(config, num_layers)
        self.plans[adapter_name] = Plan(
            name=adapter_name,
            config=config,
            num_layers=num_layers,
            prompts=slice(first, first + config.num_virtual_tokens),
            gate_rows={block: row for row, block in enumerate(gated)},
        )
        self.fresh_prompts[adapter_name] = self._fingerprint(adapter_name)
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

    def tokens(self, plan: Plan, block: int) -> torch.Tensor:
        """Prompt tokens (P, D) that enter at this block."""
        row = block - plan.config.insert_at if plan.config.deep else 0
        if plan.config.prompt_rank is None:
            return self.gated_prompt_tokens[plan.name][row]
        return self.gated_prompt_tokens_a[plan.name][row] @ self.gated_prompt_tokens_b[plan.name][row]

    def all_tokens(self, plan: Plan) -> torch.Tensor:
        """The prompt tokens of every block where some enter, (S, P, D)."""
        if plan.config.prompt_rank is None:
            return self.gated_prompt_tokens[plan.name]
        return self.gated_prompt_tokens_a[plan.name] @ self.gated_prompt_tokens_b[plan.name]

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
        return fingerprint(b"".join(part.float().cpu().numpy().tobytes() for part in parts))

    def gate(self, plan: Plan, block: int) -> torch.Tensor | None:
        """Gate value g = sigmoid(logit) of this block as a scalar tensor, or None where there is no gate.

        With `hard_gates` it is 0 or 1: logit > 0 in eval mode; while training logit + noise > 0, the noise logistic,
        so that 1 has probability g, with the gradient of sigmoid(logit + noise) (straight through). One draw serves
        the whole batch. This is the Gumbel-sigmoid of the paper's Table 4, at Gumbel temperature 1.
        """
        row = plan.gate_rows.get(block)
        if row is None:
            return None
        logit = self.gated_prompt_gate_logits[plan.name][row]
        if not plan.config.hard_gates:
            return torch.sigmoid(logit)
        if not self.training:
            return (logit > 0).to(logit.dtype)
        soft = torch.sigmoid(logit + torch.logit(torch.rand_like(logit), eps=1e-6))
        return (soft > 0.5).to(soft.dtype) + (soft - soft.detach())

    def inverse_temperature(self, plan: Plan, block: int) -> torch.Tensor | float | None:
        """1 / tau of this block, or None where it is exactly 1 for good."""
        if block < plan.config.insert_at or self.folded is not None:
            return None
        if plan.config.temperature:
            temperature = self.gated_prompt_temperatures[plan.name][block - plan.config.insert_at]
            if torch.compiler.is_exporting():  # see project_temperatures
                temperature = temperature.clamp(*plan.config.temperature_range)
            return 1.0 / temperature
        return None if plan.config.temperature_init == 1.0 else 1.0 / plan.config.temperature_init

    def project_temperatures(self, plan: Plan) -> None:
        """Move the temperatures into their range, outside autograd.

        A clamp inside the graph would cut the gradient outside the range, and a temperature that stepped out
        could never come back. An exported program cannot change its weights and needs no gradient: it has a clamp.
        """
        if plan.config.temperature and not torch.compiler.is_exporting():
            self.gated_prompt_temperatures[plan.name].data.clamp_(*plan.config.temperature_range)

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
