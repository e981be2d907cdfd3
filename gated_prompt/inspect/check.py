# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Check an adapted model on your own inputs: does it compute what the method defines?

Hooks rely on properties that the structure of a model does not show: tokens mix only in attention, nothing depends on
their number, and nothing happens between the blocks. Here the blocks are run by hand, without the tuner's hooks, and
everything that the model returns is compared with the result.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from ..architecture import VisionTransformer, find_vision_transformer
from ..architecture.adapter import Adapter
from ..architecture.batches import Inputs
from ..architecture.masks import widen_argument
from ..errors import GatedPromptError
from ..files.layout import GATE_LOGITS, HEAD_GATES, TEMPERATURES
from ..tuner.bank import PromptBank
from ..tuner.request import Request, requested
from ..tuner.scope import parts_of
from .by_hand import (
    Call,
    input_tokens,
    recorded_calls,
    replaced_outputs,
    run_by_hand,
    temperatures_and_biases,
)
from .readouts import find_adapter

TOLERANCE = 5.0  # times epsilon ** 0.75


class CheckError(GatedPromptError):
    """The adapted model does not compute what the method defines. `faults` lists the differences."""

    def __init__(self, model: str, faults: list[str]) -> None:
        self.faults = faults
        super().__init__(f"{model} fails {len(faults)} check(s):" + "".join(f"\n  - {fault}" for fault in faults))


def check(model: nn.Module, *args: Any, **inputs: Any) -> None:
    """Compare the active adapter with blocks run by hand, on your inputs. This costs about eight forwards and a
    backward.

    The function checks that disabling the adapter leaves no prompts in the blocks, that nothing happens between
    blocks, that prompts do not change the queries and keys of other tokens in the first block that has them, that the
    order of the prompts has no effect, that all outputs equal those of the blocks run by hand, that passive blocks
    give the same result as prompts in the token sequence, and that trainable prompts, gates and temperatures get
    gradients. Differences up to 3e-5 of the largest value in float32, 0.03 in float16 and 0.13 in bfloat16 pass as
    rounding errors.

    Args:
        model: a model with gated prompts, in eval mode. It is not changed, but has more hooks for a while, so do not
            call it from other threads meanwhile.
        args: positional arguments of its forward.
        inputs: named arguments of its forward, such as `pixel_values=...`.

    Raises:
        CheckError: at least one check failed. The message describes each.
        GatedPromptError: the model has no gated prompts, is in training mode, or there are no inputs.

    Example:
        ```python
        gated_prompt.check(model.eval(), pixel_values=pixel_values)  # says nothing if all is well
        ```
    """
    bank, adapter = find_adapter(model, None)
    if not args and not inputs:
        raise GatedPromptError("check needs inputs of the model, such as check(model, pixel_values=images)")
    if model.training:
        raise GatedPromptError("the model is in training mode, where dropout makes outputs random. Call model.eval().")
    root = next(module for module in model.modules() if bank in module.children())
    faults = list(_faults(root, bank, adapter, (args, inputs)))
    if faults:
        raise CheckError(type(root).__name__, faults)


def _faults(root: nn.Module, bank: PromptBank, adapter: Adapter, inputs: Inputs) -> Iterator[str]:
    vit = find_vision_transformer(root, adapter.config.target_modules)
    base, own = Request(bank, adapters=(), own_heads=True), Request(bank, adapters=(adapter,))
    with torch.no_grad():
        found = _run(root, own, inputs)
        with recorded_calls(vit) as calls:
            plain = _run(root, base, inputs)
        lengths = {input_tokens(call).shape[1] for call in calls}
        if len(calls) != len(vit.blocks) or len(lengths) != 1:
            yield f"with the adapter disabled, {len(calls)} blocks ran on sequences of {sorted(lengths)} tokens"
            return
        for block, (call, following) in enumerate(pairwise(calls)):
            if not torch.equal(call[2], input_tokens(following)):
                yield f"the model changes the tokens between blocks {block} and {block + 1}"
        if not adapter.config.zero_start:  # otherwise prompts are never part of the sequence
            with requested(base):
                yield from _attention_faults(vit, bank, adapter, calls)
        with requested(base), temperatures_and_biases(vit, bank, adapter):
            outputs, flipped = (run_by_hand(vit, bank, adapter, calls, flip) for flip in (False, True))
        if not _close(outputs[-1], flipped[-1]):
            yield "the order of the prompts changes the output: the model derives positions from the sequence index"
        with replaced_outputs(vit, adapter, outputs):
            wanted = _run(root, base, inputs)
        in_sequence = _run(root, own._replace(in_sequence=True), inputs)
    if not _values(wanted):
        yield "the output has no tensors that the checks can compare. Return a tensor, or a container of tensors."
        return
    values, others = _values(found), _values(plain)
    for name, value in _values(wanted).items():
        if not _close(values.get(name), value):
            yield f"{name or 'the output'} differs from the blocks run by hand ({_difference(found, name, value)})"
        if name in values and not _close(_values(in_sequence).get(name), values[name]):
            yield f"{name or 'the output'} depends on whether passive blocks have the prompts in their sequence"
    is_base = all(name in others and torch.equal(value, others[name]) for name, value in values.items())
    if is_base and not _starts_as_base(bank, adapter):
        yield "the prompts have no effect: the output is the same with and without them"
    yield from _gradient_faults(root, bank, adapter, inputs)


def _attention_faults(vit: VisionTransformer, bank: PromptBank, adapter: Adapter, calls: list[Call]) -> Iterator[str]:
    """Compare queries and keys of the first block with prompts with and without them, if its attention is visible."""
    args, kwargs, _ = calls[adapter.first]
    hidden, block = input_tokens(calls[adapter.first]), vit.blocks[adapter.first]
    named = {k: v for k, v in kwargs.items() if k != "hidden_states"}
    with _SeeAttention() as without:
        block(hidden, *args[1:], **named)
    fresh = bank.tokens(adapter, adapter.first).to(hidden).expand(len(hidden), -1, -1)
    start, length = adapter.prompts.start, hidden.shape[1]
    row = torch.cat((hidden[:, :start], fresh, hidden[:, start:]), dim=1)
    rest = [widen_argument(place, v, adapter.prompts, length) for place, v in enumerate(args[1:], start=1)]
    with temperatures_and_biases(vit, bank, adapter, temperatures=False), _SeeAttention() as beside:
        block(row, *rest, **{k: widen_argument(k, v, adapter.prompts, length) for k, v in named.items()})
    for name, alone, together in zip(("queries", "keys"), without.seen, beside.seen, strict=False):
        others = torch.cat((together[:, :, :start], together[:, :, adapter.prompts.stop :]), dim=2)
        if not _close(others, alone):
            yield f"prompts change the {name} of other tokens in block {adapter.first}. Do they shift positions?"


def _gradient_faults(root: nn.Module, bank: PromptBank, adapter: Adapter, inputs: Inputs) -> Iterator[str]:
    trained = {
        kind: tensors[adapter.name]
        for kind in bank.adapter_layer_names
        if adapter.name in (tensors := getattr(bank, kind))
        and tensors[adapter.name].requires_grad
        and not (adapter.config.hard_gates and kind == GATE_LOGITS)  # a step function in eval mode
        and (kind in (HEAD_GATES, TEMPERATURES) or not _starts_as_base(bank, adapter))  # times tanh(0)
    }
    if not trained or torch.is_inference_mode_enabled():
        return
    with torch.enable_grad():
        values = _values(_run(root, Request(bank, adapters=(adapter,)), inputs))
        noise = torch.Generator().manual_seed(0)
        loss = sum((v * torch.randn(v.shape, generator=noise).to(v)).sum() for v in values.values() if v.requires_grad)
        gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)  # type: ignore[arg-type]
    for kind, gradient in zip(trained, gradients, strict=True):
        if gradient is None or not bool(torch.isfinite(gradient).all()) or not bool((gradient != 0).any()):
            state = "no" if gradient is None else "a zero or non-finite"
            yield f"{kind} gets {state} gradient from the output"


def _starts_as_base(bank: PromptBank, adapter: Adapter) -> bool:
    """Whether zero start has not begun: all head gates are 0, so that the prompts have neither effect nor gradient."""
    return adapter.config.zero_start and not bool(bank.gated_prompt_head_gates[adapter.name].any())


def _run(root: nn.Module, request: Request, inputs: Inputs) -> Any:
    """Return the output on `inputs`, with the same random numbers every time (ViT-MAE samples its patches)."""
    devices = [p.device for p in list(root.parameters())[:1] if p.device.type == "cuda"]
    with torch.random.fork_rng(devices), requested(request):
        torch.manual_seed(0)
        return root(*inputs[0], **inputs[1])


class _SeeAttention(TorchFunctionMode):
    """Records the queries and keys (B, H, N, d) of the first attention computed inside the `with` block."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: tuple[torch.Tensor, ...] = ()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not self.seen and func is F.scaled_dot_product_attention:
            self.seen = args[:2]
        elif not self.seen and func in (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__):
            q, k = args[:2]
            self.seen = (q, k.transpose(-1, -2)) if q.ndim == k.ndim == 4 else ()
        return func(*args, **(kwargs or {}))


def _values(output: Any, place: str = "") -> dict[str, torch.Tensor]:
    """Return the tensors in an output by path, except those reported per block."""
    if isinstance(output, torch.Tensor):
        return {place: output} if output.is_floating_point() else {}
    names = getattr(output, "_fields", None)  # a NamedTuple
    parts = parts_of(output).items() if names is None else zip(names, output, strict=True)
    reported = ("attentions", "hidden_states")
    return {
        found: value
        for name, part in parts
        if not str(name).endswith(reported) or name == "last_hidden_state"
        for found, value in _values(part, f"{place}[{name!r}]").items()
    }


def _close(found: torch.Tensor | None, wanted: torch.Tensor) -> bool:
    if found is None or found.shape != wanted.shape:
        return False
    limit = TOLERANCE * torch.finfo(wanted.dtype).eps ** 0.75 * float(wanted.abs().max() if wanted.numel() else 1.0)
    return torch.allclose(found, wanted, rtol=0.0, atol=limit, equal_nan=True)


def _difference(found: Any, name: str, wanted: torch.Tensor) -> str:
    value = _values(found).get(name)
    if value is None or value.shape != wanted.shape:
        return f"shape {None if value is None else tuple(value.shape)}, expected {tuple(wanted.shape)}"
    return f"largest difference {float((value - wanted).abs().max()):.1e} of {float(wanted.abs().max()):.1e}"
