# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The tensors of all adapters on one model, and the prompts, gates and temperatures that they stand for."""

import hashlib

import torch
from torch import nn

from ..files.layout import GATE_LOGITS, PARAMETERS, TEMPERATURES, TOKENS, TOKENS_A, TOKENS_B
from .architecture import VisionTransformer
from .low_rank import factor_bound, factorise
from .plan import Plan


class PromptParameters(nn.Module):
    """Holds, for each adapter name:

    - `gated_prompt_tokens` (S, P, D), S = 1, or L - k when deep; with a `prompt_rank` r instead
      `gated_prompt_tokens_a` (S, P, r) and `gated_prompt_tokens_b` (S, r, D);
    - `gated_prompt_gate_logits` (G,), one for each gated block, where gates are learned;
    - `gated_prompt_temperatures` (L - k,), one for each block from k on, where temperatures are learned.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gated_prompt_tokens = nn.ParameterDict()
        self.gated_prompt_tokens_a = nn.ParameterDict()
        self.gated_prompt_tokens_b = nn.ParameterDict()
        self.gated_prompt_gate_logits = nn.ParameterDict()
        self.gated_prompt_temperatures = nn.ParameterDict()
        self.fresh_prompts: dict[str, str | None] = {}  # fingerprints of the prompts as they started

    def make_parameters(self, plan: Plan, vit: VisionTransformer, like: torch.Tensor) -> None:
        """Make the parameters of a new adapter, with the device and precision of `like`.

        Prompts start uniform in (-v, v), v = sqrt(6 / (3 p p + D)), the bound of the patch projection's Xavier
        start, as in the official code (a product of low rank with the same variance); gate logits at `gate_init`;
        temperatures at `temperature_init`.
        """
        config = plan.config
        shapes = config.parameter_shapes(plan.num_layers, vit.hidden_size)
        bound = vit.prompt_bound
        factor = factor_bound(bound, config.prompt_rank or 1)
        starts = {
            TOKENS: (-bound, bound),
            TOKENS_A: (-factor, factor),
            TOKENS_B: (-factor, factor),
            GATE_LOGITS: (config.gate_init,) * 2,
            TEMPERATURES: (config.temperature_init,) * 2,
        }
        for name in PARAMETERS:  # as in PEFT, an adapter of the same name is replaced: leave nothing
            if plan.name in getattr(self, name):
                del getattr(self, name)[plan.name]
        for name, shape in shapes.items():
            start = torch.empty(shape, dtype=like.dtype, device=like.device).uniform_(*starts[name])
            getattr(self, name)[plan.name] = nn.Parameter(start)
        self.fresh_prompts[plan.name] = self._fingerprint(plan.name)

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
        return hashlib.sha256(b"".join(part.float().cpu().numpy().tobytes() for part in parts)).hexdigest()

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
        if block < plan.config.insert_at:
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
