# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Count the tokens (CLS, registers, ...) before the patches.

They are measured on two synthetic images if the model can be called with images alone.
"""

import inspect
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..errors import ArchitectureError
from .batches import Inputs
from .towers import Tower

PREFIX_NAME = re.compile(r"(cls|class|dist|reg|storage).*(token|embed)")


def count_prefix_tokens(tower: Tower, first_block: nn.Module, width: int) -> int:
    """Count the tokens before the patches: those equal for two images, or else the parameters with their names."""
    seen = _equal_tokens(tower, first_block)
    if seen is not None:
        return seen
    named = [pair for module in tower.loops for pair in module.named_parameters(recurse=False)]
    named += [pair for module in tower.before for pair in module.named_parameters()]
    return sum(
        parameter.numel() // width
        for name, parameter in named
        if PREFIX_NAME.match(name.rpartition(".")[2]) and "pos" not in name and parameter.shape[-1] == width
    )


def synthetic_images(tower: Tower) -> torch.Tensor | None:
    """Return a black and a brighter image (2, C, H, W) of the tower's image size. None if that is unknown."""
    weight = tower.projection.get_parameter("weight")
    config = getattr(tower.body, "config", None)
    sizes = [getattr(m, name, None) for m in tower.embeddings.modules() for name in ("image_size", "img_size")]
    size = next((s for s in [getattr(config, "image_size", None), *sizes] if isinstance(s, (int, tuple, list))), None)
    if size is None or weight.device.type == "meta" or not weight.is_floating_point():
        return None
    channels = weight.shape[1] if weight.ndim == 4 else getattr(config, "num_channels", 3)
    shape = (channels, size, size) if isinstance(size, int) else (channels, *size)
    bright = torch.linspace(0.5, 1.0, torch.Size(shape).numel()).view(shape)
    return torch.stack((torch.zeros(shape), bright)).to(weight)


class _Reached(Exception):  # noqa: N818 - not an error
    """The first block was reached, and the rest need not be computed."""


def first_call(tower: Tower, first_block: nn.Module) -> Inputs | None:
    """Return the arguments with which the first block is called for two synthetic images. None if unknown."""
    images, reached = synthetic_images(tower), list[Inputs]()
    if images is None:
        return None
    own = threading.get_ident()  # other threads may run the model meanwhile

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if threading.get_ident() == own:
            reached.append((args, kwargs))
            raise _Reached

    handle = first_block.register_forward_pre_hook(stop, with_kwargs=True, prepend=True)
    try:
        with undisturbed(tower.body):
            tower.body.forward(images)
    except Exception:
        pass  # _Reached, or any error of a model that needs more than images
    finally:
        handle.remove()
    return reached[0] if reached else None


def tokens_of(block: nn.Module, call: Inputs) -> Any:
    """Return the tokens among the arguments of a block: the first, by position or by its own name."""
    args, kwargs = call
    return args[0] if args else kwargs.get(next(iter(inspect.signature(block.forward).parameters)))


def _equal_tokens(tower: Tower, first_block: nn.Module) -> int | None:
    """Count the leading tokens that are equal for two images when they reach the first block. None if unknown.

    Raises:
        ArchitectureError: the block gets several token sequences per image.
    """
    call = first_call(tower, first_block)
    tokens = None if call is None else tokens_of(first_block, call)
    if not isinstance(tokens, torch.Tensor) or tokens.ndim != 3 or len(tokens) < 2:
        return None
    if len(tokens) > 2:
        raise ArchitectureError(
            f"{type(tower.body).__name__} splits each image into {len(tokens) // 2} windows, which its blocks treat "
            "as separate images, and each would get its own prompts. Use a plain Vision Transformer."
        )
    differs = (tokens[0] != tokens[1]).any(dim=-1)
    return int(differs.int().argmax()) if differs.any() else None


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put `model` in eval mode without gradients. At the end restore its modes and the random state."""
    training = [module for module in model.modules() if module.training]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.no_grad(), torch.random.fork_rng(list(devices)):
        model.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True
