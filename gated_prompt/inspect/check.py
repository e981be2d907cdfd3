# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Check an adapted model on your own inputs: does it compute what the method says?

Hooks assume things of a model that its structure does not show: that tokens mix in attention alone, that nothing
counts them, that nothing happens between the blocks. Here the blocks are run by hand, without any hook of the package,
and everything that the model returns is compared with what comes out of that.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from ..architecture import VisionTransformer, find_vision_transformer
from ..errors import GatedPromptError
from ..files.layout import GATE_LOGITS
from ..tuner.adapter import Adapter
from ..tuner.bank import PromptBank
from ..tuner.forward import Inputs, Request, requested
from ..tuner.masks import widen_argument, widen_mask
from .readouts import find_adapter

TOLERANCE = 5.0  # times epsilon ** 0.75
Call = tuple[tuple[Any, ...], dict[str, Any], torch.Tensor]  # of a block: arguments, and the tokens that it returned


class CheckError(GatedPromptError):
    """The adapted model does not compute what the method says; `faults` lists how."""

    def __init__(self, model: str, faults: list[str]) -> None:
        self.faults = faults
        super().__init__(f"{model} fails {len(faults)} check(s):" + "".join(f"\n  - {fault}" for fault in faults))


def check(model: nn.Module, *args: Any, **inputs: Any) -> None:
    """Compare the active adapter with the blocks run by hand, on your inputs; about eight forwards and a backward.

    Checked: blocks are unaware of prompts when the adapter is disabled, and nothing happens between them; queries and
    keys of the other tokens do not change where prompts first join them; the order of the prompts has no effect; all
    outputs equal those of the loop; prompts as keys and values only give what prompts among the tokens give;
    trainable prompts, gates and temperatures get gradients. Rounding passes: 3e-5 of the largest value in float32,
    0.03 in float16, 0.13 in bfloat16.

    Args:
        model: a model with gated prompts, in eval mode. Nothing of it is changed, but hooks are on it for a while: do
            not call it from other threads meanwhile.
        args, inputs: arguments of its forward, such as `pixel_values=...`.

    Raises:
        CheckError: what fails, in words.
        GatedPromptError: the model carries no gated prompts, or is in training mode.
    """
    bank, adapter = find_adapter(model, None)
    if model.training:
        raise GatedPromptError("the model is in training mode, where dropout makes outputs random; call model.eval()")
    root = next(module for module in model.modules() if bank in module.children())
    faults = list(_faults(root, bank, adapter, (args, inputs)))
    if faults:
        raise CheckError(type(root).__name__, faults)


def _faults(root: nn.Module, bank: PromptBank, adapter: Adapter, inputs: Inputs) -> Iterator[str]:
    vit = find_vision_transformer(root, adapter.config.target_modules)
    base, own = Request(bank, adapters=(), own_heads=True), Request(bank, adapters=(adapter,))
    with torch.no_grad():
        found = _run(root, own, inputs)
        with _recorded(vit) as calls:
            plain = _run(root, base, inputs)
        lengths = {_tokens(call).shape[1] for call in calls}
        if len(calls) != len(vit.blocks) or len(lengths) != 1:
            yield f"with the adapter disabled, {len(calls)} blocks ran on rows of {sorted(lengths)} tokens"
            return
        for block, (call, following) in enumerate(pairwise(calls)):
            if not torch.equal(call[2], _tokens(following)):
                yield f"the model changes the tokens between blocks {block} and {block + 1}"
        with requested(base):
            yield from _attention_faults(vit, bank, adapter, calls)
        with requested(base), _by_hand(vit, bank, adapter):
            outputs, flipped = (_loop(vit, bank, adapter, calls, flip) for flip in (False, True))
        if not _close(outputs[-1], flipped[-1]):
            yield "the order of the prompts changes the output: the model gives tokens a position by their place"
        with _replaced(vit, adapter, outputs):
            wanted = _run(root, base, inputs)
        in_sequence = _run(root, own._replace(in_sequence=True), inputs)
    for name, value in _values(wanted).items():
        if not _close(_values(found).get(name), value):
            yield f"{name or 'the output'} is not that of the blocks run by hand ({_difference(found, name, value)})"
        if not _close(_values(in_sequence).get(name), _values(found)[name]):
            yield f"{name or 'the output'} depends on whether prompts stand among the tokens of passive blocks"
    if all(torch.equal(value, _values(plain)[name]) for name, value in _values(found).items()):
        yield "the prompts have no effect: with and without them the output is the same"
    yield from _gradient_faults(root, bank, adapter, inputs)


def _loop(
    vit: VisionTransformer, bank: PromptBank, adapter: Adapter, calls: list[Call], flip: bool
) -> list[torch.Tensor]:
    """The tokens (B, N, D) that leave each block from the first prompted one on, without prompts (paper, Eq. 5, 9)."""
    hidden, outputs = _tokens(calls[adapter.first]), []
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
    pooling, parts = adapter.config.pooling, []
    parts += [prompts] if prompts is not None and pooling in ("prompts", "prompts_and_patches") else []
    parts += [hidden[:, start:]] if pooling in ("patches", "prompts_and_patches") else []
    if parts:
        mean = torch.cat(parts, dim=1).mean(dim=1, keepdim=True)
        outputs[-1] = torch.cat((mean, hidden[:, 1:]), dim=1)
    return outputs


def _attention_faults(vit: VisionTransformer, bank: PromptBank, adapter: Adapter, calls: list[Call]) -> Iterator[str]:
    """Compare queries and keys of the first prompted block with and without prompts, where attention is seen."""
    args, kwargs, _ = calls[adapter.first]
    hidden, block = _tokens(calls[adapter.first]), vit.blocks[adapter.first]
    named = {k: v for k, v in kwargs.items() if k != "hidden_states"}
    with _SeeAttention() as without:
        block(hidden, *args[1:], **named)
    fresh = bank.tokens(adapter, adapter.first).to(hidden).expand(len(hidden), -1, -1)
    start, length = adapter.prompts.start, hidden.shape[1]
    row = torch.cat((hidden[:, :start], fresh, hidden[:, start:]), dim=1)
    rest = [widen_argument(place, v, adapter.prompts, length) for place, v in enumerate(args[1:], start=1)]
    with _by_hand(vit, bank, adapter, temperatures=False), _SeeAttention() as beside:
        block(row, *rest, **{k: widen_argument(k, v, adapter.prompts, length) for k, v in named.items()})
    for name, alone, together in zip(("queries", "keys"), without.seen, beside.seen, strict=False):
        others = torch.cat((together[:, :, :start], together[:, :, adapter.prompts.stop :]), dim=2)
        if not _close(others, alone):
            yield f"prompts change the {name} of other tokens in block {adapter.first}; do they shift positions?"


def _gradient_faults(root: nn.Module, bank: PromptBank, adapter: Adapter, inputs: Inputs) -> Iterator[str]:
    trained = {
        kind: tensors[adapter.name]
        for kind in bank.adapter_layer_names
        if adapter.name in (tensors := getattr(bank, kind))
        and tensors[adapter.name].requires_grad
        and not (adapter.config.hard_gates and kind == GATE_LOGITS)  # steps, in eval mode
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


def _run(root: nn.Module, request: Request, inputs: Inputs) -> Any:
    """The output on `inputs`, with the same random numbers every time (ViT-MAE draws its patches)."""
    devices = [p.device for p in list(root.parameters())[:1] if p.device.type == "cuda"]
    with torch.random.fork_rng(devices), requested(request):
        torch.manual_seed(0)
        return root(*inputs[0], **inputs[1])


@contextmanager
def _recorded(vit: VisionTransformer) -> Iterator[list[Call]]:
    """While open, collects the calls of the blocks."""
    calls: list[Call] = []

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls.append((args, kwargs, output[0] if isinstance(output, tuple) else output))

    with ExitStack() as stack:
        for block in vit.blocks:
            stack.callback(block.register_forward_hook(hook, with_kwargs=True).remove)
        yield calls


@contextmanager
def _by_hand(vit: VisionTransformer, bank: PromptBank, adapter: Adapter, temperatures: bool = True) -> Iterator[None]:
    """While open, blocks that are called by hand have the temperatures, and room for prompts in their own biases."""

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
            if bias.block is not None:
                stack.callback(bias.module.register_forward_hook(widen).remove)
        yield


@contextmanager
def _replaced(vit: VisionTransformer, adapter: Adapter, outputs: list[torch.Tensor]) -> Iterator[None]:
    """While open, the prompted blocks return `outputs`, and those above them what the last of them does."""

    def put(tokens: torch.Tensor) -> Callable[..., Any]:
        return lambda _m, _a, output: (tokens, *output[1:]) if isinstance(output, tuple) else tokens

    with ExitStack() as stack:
        for block in range(adapter.first, adapter.num_layers):
            tokens = outputs[min(block, adapter.last) - adapter.first]
            stack.callback(vit.blocks[block].register_forward_hook(put(tokens), prepend=True).remove)
        yield


class _SeeAttention(TorchFunctionMode):
    """While open, keeps the queries and keys (B, H, N, d) of the first attention that is computed."""

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


def _tokens(call: Call) -> torch.Tensor:
    args, kwargs, _ = call
    tokens: torch.Tensor = args[0] if args else kwargs["hidden_states"]
    return tokens


def _values(output: Any, place: str = "") -> dict[str, torch.Tensor]:
    """The numbers in an output by their place, but for what is reported block by block."""
    if isinstance(output, torch.Tensor):
        return {place: output} if output.is_floating_point() else {}
    if not isinstance(output, (Mapping, tuple, list)):
        return {}
    parts = output.items() if isinstance(output, Mapping) else enumerate(output)
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
