# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Measure on one block what its names promise: that tokens meet in its attention only, and what its keys are.

The first block runs a few times before any hook is attached, on the tokens of two synthetic images, or on made-up
tokens if the model needs more than images. What cannot be measured is believed.
"""

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import AttentionInterface

from ..errors import ArchitectureError
from .attention import AttentionParts
from .batches import Inputs
from .prefix import first_call, tokens_of, undisturbed
from .vision_transformer import VisionTransformer, causal, mixing

NAME = "gated_prompt_probe"


def measured(vit: VisionTransformer) -> VisionTransformer:
    """Return `vit` with `keys_are_projections` as measured, or unchanged where nothing could be measured.

    Raises:
        ArchitectureError: tokens attend to earlier ones only, or meet outside the attention.
    """
    block, parts = vit.blocks[0], vit.attentions[0]
    if not _has_exact_linears(block):
        return vit
    call = first_call(vit.tower, block) or _made_up_call(block, vit.hidden_size)
    tokens = tokens_of(block, call)
    if not isinstance(tokens, torch.Tensor) or tokens.ndim != 3 or tokens.shape[1] < 3:
        return vit
    with undisturbed(block):
        _believed_if_it_fails(_refuse_causal, block, call, tokens)
        _believed_if_it_fails(_refuse_mixing, parts, call, tokens)
        if not parts.uses_interface:
            return vit
        seen = _believed_if_it_fails(_keys_and_values, parts, call, tokens)
        if seen is not None and not seen:  # it names AttentionInterface, but computes attention in another way
            return replace(vit, attentions=[replace(each, eager=None) for each in vit.attentions])
        if not seen or not parts.can_be_passive:
            return vit
        found = _believed_if_it_fails(_are_projections, parts, seen, tokens)
    return vit if found is None else replace(vit, keys_are_projections=found)


def _made_up_call(block: nn.Module, width: int) -> Inputs:
    """Return made-up tokens for a block of a model that needs more than images."""
    like = next(block.parameters())
    tokens = torch.randn(1, 9, width, generator=torch.Generator().manual_seed(0)).to(like)
    takes = list(inspect.signature(block.forward).parameters.values())[1:]
    return (tokens,), {p.name: None for p in takes if p.name == "attention_mask" and p.default is p.empty}


def _believed_if_it_fails(measure: Callable[..., Any], *args: Any) -> Any:
    """Return what was measured. None if the block cannot be called by hand, for whatever reason."""
    try:
        return measure(*args)
    except ArchitectureError:
        raise
    except Exception:
        return None


def _has_exact_linears(block: nn.Module) -> bool:
    """Whether each token is computed alone: quantization may choose a scale for all of them."""
    return all(p.is_floating_point() and type(p) is nn.Parameter for p in block.parameters()) and all(
        isinstance(m, nn.Linear) for m in block.modules() if hasattr(m, "in_features")
    )


def _run(block: nn.Module, call: Inputs, tokens: torch.Tensor) -> torch.Tensor:
    """Call the block with other tokens, without anybody's hooks. Returns tokens (B, N, D)."""
    args, kwargs = call
    if args:
        output = block.forward(tokens, *args[1:], **kwargs)
    else:
        name = next(name for name, value in kwargs.items() if value is tokens_of(block, call))
        output = block.forward(**{**kwargs, name: tokens})
    found: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return found


def _changed(tokens: torch.Tensor, place: int) -> torch.Tensor:
    changed = tokens.clone()
    changed[:, place] += torch.linspace(-1.0, 1.0, tokens.shape[-1]).to(tokens) * (1 + tokens.std())
    return changed


def _refuse_causal(block: nn.Module, call: Inputs, tokens: torch.Tensor) -> None:
    before, first, last = (_run(block, call, new) for new in (tokens, _changed(tokens, 0), _changed(tokens, -1)))
    if bool((first[:, -1] != before[:, -1]).any()) and torch.equal(last[:, 0], before[:, 0]):
        raise causal(block)


def _refuse_mixing(parts: AttentionParts, call: Inputs, tokens: torch.Tensor) -> None:
    block, middle = parts.block, tokens.shape[1] // 2
    with _replaced_forward(parts.attention, _Silent(parts.attention.forward)):
        before, after = _run(block, call, tokens), _run(block, call, _changed(tokens, middle))
    difference = (after - before).abs().amax(dim=(0, 2))
    difference[middle] = 0
    if float(difference.max()) > 100 * torch.finfo(before.dtype).eps * float(before.abs().max()):
        raise mixing(block)


class _Silent:
    """In place of an attention's forward: returns zeros in its format."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self.forward(*args, **kwargs)
        if isinstance(output, tuple):
            return (torch.zeros_like(output[0]), *output[1:])
        return torch.zeros_like(output)


@contextmanager
def _replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace the forward of a module for this thread. Others may run the model meanwhile."""
    own, before, original = threading.get_ident(), vars(module).get("forward"), module.forward

    def chosen(*args: Any, **kwargs: Any) -> Any:
        return (forward if threading.get_ident() == own else original)(*args, **kwargs)

    module.forward = chosen
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


class _Probe:
    """In place of an attention's config: the attention calls `_see`, which records its keys and values."""

    _attn_implementation = NAME

    def __init__(self, parts: AttentionParts) -> None:
        self.parts, self.config = parts, parts.attention.config
        self.thread = threading.get_ident()
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.config, name)


def _see(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
) -> Any:
    probe: Any = module.config
    if threading.get_ident() == probe.thread:
        probe.seen.append((key, value))
    return probe.parts.function(probe.config)(module, query, key, value, *args, **kwargs)


AttentionInterface.register(NAME, _see)


def _keys_and_values(
    parts: AttentionParts, call: Inputs, tokens: torch.Tensor
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the keys and values with which the block calls its attention function, for each call."""
    attention: Any = parts.attention
    probe = _Probe(parts)
    attention.config = probe
    try:
        _run(parts.block, call, tokens)
    finally:
        attention.config = probe.config
    return probe.seen


def _are_projections(
    parts: AttentionParts, seen: list[tuple[torch.Tensor, torch.Tensor]], tokens: torch.Tensor
) -> bool:
    """Whether these are the keys and values that `AttentionParts.keys_and_values` computes.

    Position embeddings may rotate the keys of patches, which keeps their length. Those of prompts are not rotated.
    """
    (seen_keys, seen_values), *more = seen
    keys, values = parts.keys_and_values(tokens, seen_keys.shape[-1])
    if more or keys.shape != seen_keys.shape or values.shape != seen_values.shape:
        return False
    return _close(keys.norm(dim=-1), seen_keys.norm(dim=-1)) and _close(values, seen_values)


def _close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return float((found - wanted).abs().max()) <= torch.finfo(wanted.dtype).eps ** 0.5 * float(wanted.abs().max())
