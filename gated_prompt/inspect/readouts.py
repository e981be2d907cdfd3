# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Read what an adapter has learned: gates, temperatures and selection ratios per block. Head gates of zero start."""

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import nn

from ..architecture.adapter import Adapter
from ..config import GatedPromptConfig
from ..errors import GatedPromptError
from ..tuner.bank import PromptBank, find_bank, find_banks


def has_prompts(model: nn.Module) -> bool:
    """Return whether `model`, or a model that it wraps, has gated prompts, active or not.

    Example:
        ```python
        gated_prompt.has_prompts(model)  # True
        gated_prompt.has_prompts(model.unload())  # False
        ```
    """
    return bool(find_banks(model))


def prompts_are_active(model: nn.Module) -> bool:
    """Whether the active adapter of a PEFT model is one of gated prompts."""
    return isinstance(model, PeftModel) and isinstance(model.active_peft_config, GatedPromptConfig)


def gates(model: nn.Module, adapter_name: str | None = None) -> torch.Tensor:
    """Return the gate values g = sigmoid(logit) in the order of the gated blocks (paper, Section 4).

    With `hard_gates`, g is the probability of an open gate in training. In eval mode, gates above 0.5 are open.

    Args:
        model: a model with gated prompts, or a model that contains one.
        adapter_name: None means the active adapter.

    Returns:
        Shape (G,), or (0,) for an adapter without gates.

    Raises:
        GatedPromptError: the model has no gated prompts, or no adapter of that name, or it contains several models
            with gated prompts.

    Example:
        ```python
        gated_prompt.gates(model)  # tensor([0.0067, 0.0067, 0.0067]) before training
        ```
    """
    return torch.sigmoid(_gate_logits(*find_adapter(model, adapter_name)))


def head_gates(model: nn.Module, adapter_name: str | None = None) -> torch.Tensor:
    """Return the gates tanh(a) of zero start by block and attention head.

    Args:
        model: a model with gated prompts, or a model that contains one.
        adapter_name: None means the active adapter.

    Returns:
        Shape (K, H) for K blocks with prompts and H heads, or (0, 0) without zero start.

    Raises:
        GatedPromptError: as for `gates`.

    Example:
        ```python
        model = get_peft_model(vit, GatedPromptConfig(deep=True, zero_start=True))
        gated_prompt.head_gates(model)  # zeros (4, 4) before training: the adapted model begins as the base
        ```
    """
    bank, adapter = find_adapter(model, adapter_name)
    if not adapter.config.zero_start:
        return torch.empty(0, 0)
    return torch.tanh(bank.gated_prompt_head_gates[adapter.name].detach().cpu())


def temperatures(model: nn.Module, adapter_name: str | None = None) -> torch.Tensor:
    """Return the attention temperatures of the K blocks with prompts.

    These are the values that a forward uses, clamped to `temperature_range`. They are constants if they are fixed.

    Args:
        model: a model with gated prompts, or a model that contains one.
        adapter_name: None means the active adapter.

    Returns:
        Shape (K,).

    Raises:
        GatedPromptError: as for `gates`.

    Example:
        ```python
        gated_prompt.temperatures(model)  # tensor([1., 1., 1., 1.]) before training
        ```
    """
    bank, adapter = find_adapter(model, adapter_name)
    config = adapter.config
    if not config.temperature:
        return torch.full((len(adapter.blocks),), config.temperature_init)
    return bank.gated_prompt_temperatures[adapter.name].detach().cpu().clamp(*config.temperature_range)


def selection_ratios(model: nn.Module, adapter_name: str | None = None) -> torch.Tensor:
    """Return each gated block's share in the final prompt tokens.

    The weight of block l in the unrolled recurrence is g_l * prod_{j>l} (1 - g_j) (paper, Equations 8, 10, 11),
    normalized over the gated blocks. A block without a gate replaces the prompts (g = 1), so all blocks before it have
    a share of 0. If that includes every gated block, all shares are 0. The shares are computed from logarithms, so
    that closed gates give ratios rather than 0 / 0.

    Args:
        model: a model with gated prompts, or a model that contains one.
        adapter_name: None means the active adapter.

    Returns:
        Shape (G,), with sum 1, or (0,) for an adapter without gates.

    Raises:
        GatedPromptError: as for `gates`.

    Example:
        ```python
        ratios = gated_prompt.selection_ratios(model)
        print(f"block {int(ratios.argmax())} of the gated ones has the largest share")
        ```
    """
    bank, adapter = find_adapter(model, adapter_name)
    logits = _gate_logits(bank, adapter).double()
    # No later block reads the prompts of the last block, so without a gate it replaces nothing.
    replaced = [block for block in adapter.blocks[:-1] if block not in adapter.gate_rows]
    reaches = torch.tensor([block > max(replaced, default=-1) for block in adapter.gate_rows], dtype=torch.bool)
    log_closed = F.logsigmoid(-logits)
    log_closed_later = log_closed.flip(0).cumsum(0).flip(0) - log_closed
    weights = (F.logsigmoid(logits) + log_closed_later).masked_fill(~reaches, -torch.inf)
    return torch.softmax(weights, dim=0).nan_to_num(0.0).float()


def _gate_logits(bank: PromptBank, adapter: Adapter) -> torch.Tensor:
    """Return the logits on the CPU: the readouts use float64, which not every accelerator has."""
    return bank.gated_prompt_gate_logits[adapter.name].detach().cpu().clone() if adapter.gate_rows else torch.empty(0)


def find_adapter(model: nn.Module, adapter_name: str | None) -> tuple[PromptBank, Adapter]:
    """Return the bank and one adapter. None means the active one.

    Raises:
        GatedPromptError: the model has no gated prompts, or no adapter of that name, or it contains several models
            with gated prompts.
    """
    bank = find_bank(model)
    if bank is None:
        raise GatedPromptError(
            f"this {type(model).__name__} carries no gated prompts. Wrap it with "
            "get_peft_model(model, GatedPromptConfig(...)) or load an adapter first."
        )
    name = adapter_name if adapter_name is not None else next(iter(bank.active_names), None)
    if name not in bank.adapters:
        raise GatedPromptError(f"no adapter {name!r} here. Choose from: {', '.join(bank.adapters) or 'none'}.")
    return bank, bank.adapters[name]
