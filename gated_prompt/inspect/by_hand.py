# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Run the blocks of a model by hand, directly by the paper's equations, without the tuner's hooks."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from ..architecture import VisionTransformer
from ..architecture.adapter import Adapter
from ..architecture.masks import widen_argument, widen_mask
from ..tuner.bank import PromptBank
from .zero_start_by_hand import reading_prompts

Call = tuple[tuple[Any, ...], dict[str, Any], torch.Tensor]  # of a block: arguments, tokens that it returned


def run_by_hand(
    vit: VisionTransformer, bank: PromptBank, adapter: Adapter, calls: list[Call], flip: bool
) -> list[torch.Tensor]:
    """Return the output tokens (B, N, D), without prompts, of each block with prompts (paper, Eq. 5, 9)."""
    if adapter.config.zero_start:
        with reading_prompts(vit, bank, adapter, flip):
            return _run_without_prompts(vit, adapter, calls)
    hidden, outputs = input_tokens(calls[adapter.first]), []
    start, stop, length = adapter.prompts.start, adapter.prompts.stop, hidden.shape[1]
    prompts = None
    for block in adapter.blocks:
        if adapter.config.deep or prompts is None:
            fresh = bank.tokens(adapter, block).to(hidden)
            prompts = (fresh.flip(0) if flip else fresh).expand(len(hidden), -1, -1)
        row = torch.cat((hidden[:, :start], prompts, hidden[:, start:]), dim=1)
        args, kwargs, _ = calls[block]
        named = {k: widen_argument(k, v, adapter.prompts, length) for k, v in kwargs.items() if k != "hidden_states"}
        rest = [widen_argument(place, v, adapter.prompts, length) for place, v in enumerate(args[1:], start=1)]
        output = vit.blocks[block](row, *rest, **named)
        row = output[0] if isinstance(output, tuple) else output
        gate = bank.gate(adapter, adapter.gate_rows[block]).to(row) if block in adapter.gate_rows else 1.0
        prompts = gate * row[:, start:stop] + (1 - gate) * prompts
        hidden = torch.cat((row[:, :start], row[:, stop:]), dim=1)
        outputs.append(hidden)
    return _pooled(adapter, outputs, prompts)


def _run_without_prompts(vit: VisionTransformer, adapter: Adapter, calls: list[Call]) -> list[torch.Tensor]:
    hidden, outputs = input_tokens(calls[adapter.first]), []
    for block in adapter.blocks:
        args, kwargs, _ = calls[block]
        named = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        output = vit.blocks[block](hidden, *args[1:], **named)
        hidden = output[0] if isinstance(output, tuple) else output
        outputs.append(hidden)
    return _pooled(adapter, outputs, None)


def _pooled(adapter: Adapter, outputs: list[torch.Tensor], prompts: torch.Tensor | None) -> list[torch.Tensor]:
    """Put the mean that `pooling` names into token 0 of the last output."""
    hidden, pooling, parts = outputs[-1], adapter.config.pooling, []
    parts += [prompts] if prompts is not None and pooling in ("prompts", "prompts_and_patches") else []
    parts += [hidden[:, adapter.prompts.start :]] if pooling in ("patches", "prompts_and_patches") else []
    if parts:
        mean = torch.cat(parts, dim=1).mean(dim=1, keepdim=True)
        outputs[-1] = torch.cat((mean, hidden[:, 1:]), dim=1)
    return outputs


@contextmanager
def recorded_calls(vit: VisionTransformer) -> Iterator[list[Call]]:
    """Record all calls of the blocks."""
    calls: list[Call] = []

    def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not args:  # given by name
            name = list(inspect.signature(type(block).forward).parameters)[1]
            args, kwargs = (kwargs[name],), {k: v for k, v in kwargs.items() if k != name}
        calls.append((args, kwargs, output[0] if isinstance(output, tuple) else output))

    with ExitStack() as stack:
        for block in vit.blocks:
            stack.callback(block.register_forward_hook(hook, with_kwargs=True).remove)
        yield calls


@contextmanager
def temperatures_and_biases(
    vit: VisionTransformer, bank: PromptBank, adapter: Adapter, temperatures: bool = True
) -> Iterator[None]:
    """Apply the temperatures, and make room for prompts in position biases, while blocks are called by hand."""

    def divide(index: int) -> Callable[..., torch.Tensor]:
        parts, scale = vit.attentions[index], bank.inverse_temperature(adapter, index)

        def hook(_: nn.Module, args: Any, queries: torch.Tensor) -> torch.Tensor:
            rows = queries.new_ones(queries.shape[-1])
            rows[: len(rows) // 3 if parts.fused_output else None] *= 1.0 if scale is None else scale
            return queries * rows

        return hook

    def widen(_: nn.Module, args: Any, bias: torch.Tensor) -> torch.Tensor:
        widened: torch.Tensor = widen_mask(bias, adapter.prompts, bias.shape[-1])
        return widened

    with ExitStack() as stack:
        for index in adapter.blocks if temperatures else ():
            handle = vit.attentions[index].query_output.register_forward_hook(divide(index))
            stack.callback(handle.remove)
        for bias in vit.position_biases:
            if bias.block is not None and not adapter.config.zero_start:
                stack.callback(bias.module.register_forward_hook(widen).remove)
        yield


@contextmanager
def replaced_outputs(vit: VisionTransformer, adapter: Adapter, outputs: list[torch.Tensor]) -> Iterator[None]:
    """Make each block with prompts return its part of `outputs`, and all later blocks the last part."""

    def put(tokens: torch.Tensor) -> Callable[..., Any]:
        return lambda _m, _a, output: (tokens, *output[1:]) if isinstance(output, tuple) else tokens

    with ExitStack() as stack:
        for block in range(adapter.first, adapter.num_layers):
            tokens = outputs[min(block, adapter.last) - adapter.first]
            stack.callback(vit.blocks[block].register_forward_hook(put(tokens), prepend=True).remove)
        yield


def input_tokens(call: Call) -> torch.Tensor:
    """Return the hidden states (B, N, D) that a block was called with."""
    args, kwargs, _ = call
    tokens: torch.Tensor = args[0] if args else kwargs["hidden_states"]
    return tokens
