# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""A backbone whose adapters are inputs: stacked tensors, and for each image the row of its adapter.

The forward is that of a mixed batch (`tuner/mixed_batch.py`) with one adapter, whose tensors are replaced by those of
A adapters, stacked along their second axis.
"""

import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.func import functional_call

from ..architecture.batches import Inputs
from ..config import GatedPromptConfig
from ..files.layout import BANK, PREFIX
from ..serving.backbone import Features
from ..tuner.bank import PromptBank, find_banks
from ..tuner.mixed_batch import MixedImages
from ..tuner.request import Request, requested
from .structure import Structure
from .task_file import KINDS

STACKED = "stacked"  # the name of the adapter on the model


class StackedImages(MixedImages):
    """Images of which `rows` (B,) says the adapter, an index into the stacked tensors of the only one there is."""

    stacked = True

    def __init__(self, bank: PromptBank, rows: Tensor) -> None:
        self.bank, self.rows, self.groups = bank, rows, [[0]]
        self.together = (bank.adapters[STACKED],)
        self.adapters = list(self.together)

    def check_count(self, module: nn.Module, inputs: Inputs) -> None:
        """Nothing to check: the graph's inputs have one batch size."""


class Engine(nn.Module):
    """The graph to export.

    Args:
        backbone: as `serving.backbone.Features` takes it.
        structure: what all adapters of the engine have in common.

    Attributes:
        names: of the inputs after `pixel_values` and `rows`, in order.
    """

    def __init__(self, backbone: nn.Module, structure: Structure) -> None:
        super().__init__()
        self.structure, self.features = structure, Features(backbone)
        self.model: nn.Module = self.features
        # In a tuple: while torch.export traces, modules read from attributes are proxies, and not the bank itself.
        self.banks: tuple[PromptBank, ...] = ()
        shapes: dict[str, tuple[int, ...]] = {}
        if structure.prompts is not None:
            config = GatedPromptConfig(**structure.prompts, prompt_dropout=0.0, modules_to_save=[])
            self.model = get_peft_model(self.features, config, adapter_name=STACKED)
            self.banks = tuple(find_banks(self.model).values())
            for name, parameter in KINDS.items():
                tensors = getattr(self.banks[0], parameter)
                if STACKED in tensors:
                    shapes[name] = tuple(tensors[STACKED].shape)
        self.shapes = shapes
        self.names = [*shapes, "weight", "bias"]
        self.eval().requires_grad_(False)

    def forward(self, pixel_values: Tensor, rows: Tensor, *tensors: Tensor) -> Tensor:
        """Scores (B, C) of `pixel_values` (B, 3, H, W). `rows` (B,): indices of adapters.

        `tensors`: those of A adapters, in the order of `names`: each (A, ...), and last the heads' weight (A, C, F)
        and bias (A, C), which is minus infinity for classes that an adapter does not have.
        """
        *prompts, weight, bias = tensors
        blocks = () if self.structure.blocks is None else tuple(self.structure.blocks)
        if not prompts:
            seen = self.model(pixel_values, blocks=blocks)
        else:
            bank = self.banks[0]
            path = f"{PREFIX}{BANK}."
            stacked = {
                f"{path}{KINDS[name]}.{STACKED}": tensor.transpose(0, 1)
                for name, tensor in zip(self.shapes, prompts, strict=True)
            }
            with requested(Request(bank, images=StackedImages(bank, rows))):
                seen = functional_call(self.model, stacked, (pixel_values,), {"blocks": blocks}, strict=False)
        read = self.features.read(seen, self.structure.reads, self.structure.blocks)
        scores: Tensor = torch.bmm(weight[rows], read.float()[:, :, None])[:, :, 0] + bias[rows]
        return scores
