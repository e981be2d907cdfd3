# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""In which blocks the prompts have to stand among the tokens, and in which they are keys and values only.

What a block makes of its prompts is lost in three cases: behind it stands a closed gate; fresh prompts follow (deep);
it is the last block and no pooling reads them. Such a block is passive: queries, output projection and MLP run on the
other tokens alone, which see the prompts through their keys and values (`key_values.py`). Up to the first block that
is not passive the prompts are moreover the same for every image, and so are their keys and values.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .bank import PromptBank
    from .plan import Plan

CLOSED = 1 / 32  # of the precision: what the block adds may be 16 times as large as the prompts and is still lost


@dataclass(frozen=True)
class Passage:
    """How the prompts of one forward pass: `passive` blocks, and the first block that finds them among its tokens."""

    passive: frozenset[int] = frozenset()
    insertion: int = 0


@dataclass
class CachedKeysValues:
    """Keys and values by block, with what they were made of: the weights' versions and the prompt tokens."""

    stamp: tuple[object, ...]
    tokens: torch.Tensor
    by_block: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)


def plan_passage(bank: "PromptBank", plan: "Plan", dtype: torch.dtype) -> Passage:
    """Decide for this forward, whose hidden states have the precision `dtype`."""
    first, last = plan.config.insert_at, plan.num_layers - 1
    if not _can_be_passive(bank, plan):
        return Passage(insertion=first)
    passive = frozenset(range(first, last)) if plan.config.deep else _closed_blocks(bank, plan, dtype)
    if plan.config.pooling not in ("prompts", "prompts_and_patches"):
        passive |= {last}
    if bank.training and plan.config.prompt_dropout > 0 and not plan.config.deep:
        return Passage(passive, insertion=first)  # dropped by image: every block has to find the same ones dropped
    return Passage(passive, next((block for block in plan.blocks if block not in passive), last + 1))


def _can_be_passive(bank: "PromptBank", plan: "Plan") -> bool:
    if not bank.fast_path or bank.attentions_wanted or any(b not in bank.routes for b in plan.blocks):
        return False
    # Recomputed without the hooks around it, a block would not know its prompts. Whether gradients are on says nothing
    # here: reentrant checkpointing computes first without them.
    return not (bank.training and any(getattr(block, "gradient_checkpointing", False) for block in bank.blocks))


def _closed_blocks(bank: "PromptBank", plan: "Plan", dtype: torch.dtype) -> frozenset[int]:
    """Blocks whose gate g is closed: g * out + (1 - g) * in is `in` in the working precision.

    In training the precision of the gate's own parameter counts too: in bfloat16 a gate may do nothing yet and still
    be learning. On a GPU reading the gates waits for it, so in training gates that were found open are not read
    again before the next `train()` or `eval()`; one that was found closed is, and runs in band as soon as it opens.
    A compiled program would hold what the gates were when it was made, so there only constants are used.
    """
    if not plan.gate_rows or torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return frozenset()
    logits = bank.gated_prompt_gate_logits[plan.name].detach()
    if bank.training and logits.is_cuda and bank.closed_in_training == frozenset():
        return frozenset()
    if plan.config.hard_gates:  # drawn anew in every step of a training; in eval exactly 0 or 1
        values = [] if bank.training else logits.tolist()
        return frozenset(block for block, row in plan.gate_rows.items() if values and values[row] <= 0)
    limit = torch.finfo(dtype).eps * CLOSED
    if bank.training:
        limit = min(limit, torch.finfo(logits.dtype).eps * CLOSED)
    else:
        limit = max(limit, getattr(plan.config, "gate_tolerance", 0.0))
    values = torch.sigmoid(logits.double()).tolist()
    closed = frozenset(block for block, row in plan.gate_rows.items() if values[row] <= limit)
    bank.closed_in_training = closed if bank.training else None
    return closed


def cached_keys_values(bank: "PromptBank", plan: "Plan") -> CachedKeysValues | None:
    """Where an evaluation keeps the keys and values of prompts that are the same for all images, or None.

    Prompts and weights can be changed in many ways, so the prompts are compared with those that the keys were made
    of, the weights by their versions. Layers of other PEFT methods can change without either: nothing is kept there.
    """
    if bank.training or torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return None
    parts = [bank.routes[block].parts for block in plan.blocks[: bank.passage.insertion - plan.config.insert_at]]
    if not parts or any(part.is_adapted for part in parts):
        return None
    tokens = bank.all_tokens(plan).detach()
    weights = [p for part in parts for m in (part.norm, part.key, part.value) for p in m.parameters()]
    if any(p.is_inference() for p in weights):
        return None
    autocast = torch.get_autocast_dtype(tokens.device.type) if torch.is_autocast_enabled(tokens.device.type) else None
    stamp = (autocast, tokens.dtype, tokens.device, *((id(p), p._version) for p in weights))
    kept = bank.keys_values.get(plan.name)
    if kept is None or kept.stamp != stamp or not torch.equal(kept.tokens, tokens):
        kept = bank.keys_values[plan.name] = CachedKeysValues(stamp, tokens.clone())
    return kept
