# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Fold the attention temperatures into the query weights, for inference.

Dividing the attention logits by tau is dividing the queries by tau, and the queries are a linear map of the tokens:
weight and bias can be divided once instead of the queries in every forward. The prompts themselves cannot be folded.
"""

from dataclasses import dataclass

import torch
from torch import nn

from ..errors import UnsupportedOperationError
from ..inspect.readouts import find_adapter, temperatures
from .bank import PromptBank, find_bank


@dataclass(frozen=True)
class Folded:
    """Whose temperatures the query weights hold, and what these weights were before."""

    name: str
    weights: list[tuple[nn.Parameter, torch.Tensor]]


@torch.no_grad()
def fold_temperatures(model: nn.Module, adapter_name: str | None = None) -> None:
    """Divide each block's query weights by the adapter's temperature.

    `unfold_temperatures` and `unload` undo it exactly. While folded, the base holds changed weights: its adapter
    cannot be disabled, switched or trained.

    Raises:
        GatedPromptError: the model carries no gated prompts, or no adapter of that name.
        UnsupportedOperationError: the model is in training mode or folded already, the adapter is not the active one,
            or queries are normalised or adapted by another method, so that their weights cannot be scaled.
    """
    bank, plan = find_adapter(model, adapter_name)
    name = plan.name
    if bank.folded is not None or bank.training or name != bank.active_names[0]:
        state = "folded already" if bank.folded is not None else "in training mode" if bank.training else "not active"
        raise UnsupportedOperationError(
            f"temperatures are folded once, in eval mode, into a model whose adapter {name!r} is active; it is {state}"
        )
    linears = bank.queries[plan.config.insert_at :]
    if any(not isinstance(query.module, nn.Linear) for query in linears):
        raise UnsupportedOperationError(
            f"the queries of this model come out of {type(linears[0].module).__name__}, not of a plain Linear, so the "
            "temperatures cannot be folded into weights; they work as they are"
        )
    kept: list[tuple[nn.Parameter, torch.Tensor]] = []
    for query, tau in zip(linears, temperatures(model, name).tolist(), strict=True):
        for parameter in query.module.parameters(recurse=False):
            kept.append((parameter, parameter.detach().clone()))
            parameter[: len(parameter) // 3 if query.fused else None].div_(tau)
    bank.folded = Folded(name, kept)


def unfold_temperatures(model: nn.Module) -> None:
    """Give the query weights their own values back, bit for bit; nothing happens where nothing is folded.

    Raises:
        UnsupportedOperationError: the model carries no gated prompts.
    """
    bank = find_bank(model)
    if bank is None:
        raise UnsupportedOperationError(f"this {type(model).__name__} carries no gated prompts, so nothing is folded")
    unfold(bank)


@torch.no_grad()
def unfold(bank: PromptBank) -> None:
    """As `unfold_temperatures`, of the bank's own model."""
    for parameter, value in bank.folded.weights if bank.folded is not None else ():
        parameter.copy_(value)
    bank.folded = None
