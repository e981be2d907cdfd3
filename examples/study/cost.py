# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What a model costs: bytes that a training step keeps, and time for an image."""

import time
from statistics import median

import torch
from torch import Tensor, nn

REPEATS = 5


def kept_megabytes(model: nn.Module, inputs: Tensor) -> float:
    """Megabytes of all tensors that one forward keeps for its backward pass, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    held: list[Tensor] = []  # a storage that is freed could be given to the next tensor

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(inputs)
    return round(sum(kept.values()) / 1e6, 1)


@torch.no_grad()
def milliseconds_per_image(model: nn.Module, inputs: Tensor) -> float:
    """Median processor time of a forward, divided by the images in it."""
    model.eval()
    seconds = []
    for _ in range(REPEATS + 1):
        begin = time.process_time()
        model(inputs)
        seconds.append(time.process_time() - begin)
    return round(1000 * median(seconds[1:]) / len(inputs), 2)
