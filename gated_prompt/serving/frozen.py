# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Adapters that are only called in mixed batches, by the thousand: PEFT does not know them.

To add or delete one, PEFT looks at every parameter and adapter of the model, so its time grows with their number.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from ..architecture.adapter import make_adapter
from ..architecture.prepare_config import prepare_config
from ..config import GatedPromptConfig
from ..errors import AdapterMismatchError
from ..files.layout import PARAMETERS
from ..tuner.bank import PromptBank


def add_frozen(
    model: nn.Module, bank: PromptBank, adapter_name: str, config: GatedPromptConfig, tensors: Mapping[str, Tensor]
) -> None:
    """Add an adapter without a head, with these tensors by kind, to the bank of a model.

    Raises:
        GatedPromptError: the config does not fit the model, or the tensors do not have the shapes that it says.
    """
    vit = bank.vit
    prepared = prepare_config(config, model, vit)
    adapter = make_adapter(adapter_name, prepared, len(vit.blocks), bank.can_be_passive)
    wanted = prepared.parameter_shapes(adapter.num_layers, vit.hidden_size)
    found = {kind: tuple(tensor.shape) for kind, tensor in tensors.items()}
    if found != wanted:
        raise AdapterMismatchError(f"the adapter's tensors have the shapes {found}, and its config says {wanted}")
    for kind, tensor in tensors.items():  # in float32, as PEFT keeps adapters
        getattr(bank, kind)[adapter_name] = nn.Parameter(tensor.float(), requires_grad=False)
    bank.adapters[adapter_name] = adapter  # last: a thread that sees the adapter also finds its tensors


def drop_frozen(bank: PromptBank, adapter_name: str) -> None:
    """Remove what `add_frozen` added."""
    del bank.adapters[adapter_name]
    for kind in PARAMETERS:
        if adapter_name in getattr(bank, kind):
            del getattr(bank, kind)[adapter_name]
