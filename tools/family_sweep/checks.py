# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What a prompted model must satisfy, checked from outside: nothing here uses the tuner's own code."""

import tempfile
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from torch import nn
from torch.overrides import TorchFunctionMode

import gated_prompt
from gated_prompt import GatedPromptConfig

P = 7  # not the number of any other token of the tiny models
Run = Callable[[nn.Module, slice], Any]  # the output of a model for some of the two images


class SeeKeys(TorchFunctionMode):
    """Counts the lengths of the sequences of keys in each attention, fused or not."""

    def __init__(self) -> None:
        super().__init__()
        self.lengths: Counter[int] = Counter()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            self.lengths[args[1].shape[-2]] += 1
        elif func in (F.softmax, torch.softmax, torch.Tensor.softmax) and args[0].ndim == 4:
            self.lengths[args[0].shape[-1]] += 1
        return func(*args, **(kwargs or {}))


def values(output: Any) -> list[torch.Tensor]:
    """The floats in an output, without hidden states and attention maps."""
    if isinstance(output, torch.Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, dict):
        kept = [part for name, part in output.items() if not name.endswith(("hidden_states", "attentions"))]
        return [value for part in kept for value in values(part)]
    return [value for part in output for value in values(part)] if isinstance(output, (tuple, list)) else []


def adapted(base: nn.Module, **settings: Any) -> PeftModel:
    """The base with prompts, gates, temperatures and head away from their start."""
    config = GatedPromptConfig(num_virtual_tokens=P, prompt_dropout=0.0, gate_init=0.0, **settings)
    model = get_peft_model(base, config).eval()
    noise = torch.Generator().manual_seed(4)
    for name, parameter in model.named_parameters():
        if "gated_prompt_" in name:
            step = torch.randn(parameter.shape, generator=noise).to(parameter)
            parameter.data += 0.5 * (step.abs() if "temperatures" in name else step)
    return model


def faults(build: Callable[[], nn.Module], run: Run, blocks: int, **settings: Any) -> list[str]:
    """What is wrong with gated prompts on a model that runs without them. Empty where all checks hold."""
    found: list[str] = []
    base, whole = build().requires_grad_(False), slice(None)
    with torch.no_grad(), SeeKeys() as plain:
        wanted = values(run(base, whole))
    in_batch = _same_one_by_one(base, run)
    model = adapted(base, **settings)
    with torch.no_grad(), SeeKeys() as seen:
        output = values(run(model, whole))
    raised = Counter(seen.lengths)
    raised.subtract(plain.lengths)
    more, less = sum(raised[n] for n in raised if raised[n] > 0), -sum(raised[n] for n in raised if raised[n] < 0)
    shifted = all(raised[n + P] >= -raised[n] for n in raised if raised[n] < 0)
    if not (more == less == blocks and shifted):
        found.append(f"keys: {dict(plain.lengths)} without prompts, {dict(seen.lengths)} with {P} in {blocks} blocks")
    if all(torch.equal(a, b) for a, b in zip(output, wanted, strict=True)):
        found.append("no effect")
    bank = next(m for n, m in model.named_modules() if n.endswith("model.gated_prompt"))
    tokens = bank.gated_prompt_tokens["default"]
    with torch.no_grad():
        tokens.data = tokens.data.flip(1)
        if not _close(values(run(model, whole)), output):
            found.append("the order of the prompts matters")
        tokens.data = tokens.data.flip(1)
        if in_batch and not _same_one_by_one(model, run):
            found.append("a batch of 2 is not two of 1")
        with tempfile.TemporaryDirectory() as folder:
            gated_prompt.save(model, folder)
            loaded = gated_prompt.load(build().requires_grad_(False), folder).eval()
        if not _close(values(run(loaded, whole)), output, within=1e-5):  # aligned memory rounds otherwise
            found.append("a loaded adapter computes something else")
    found += _gradients(model, run)
    with torch.no_grad():
        if not _equal(values(run(model.unload().requires_grad_(False), whole)), wanted):
            found.append("the base is not restored by unload")
    return found


def _gradients(model: PeftModel, run: Run) -> list[str]:
    found = values(run(model, slice(None)))
    loss = sum((v * torch.randn(v.shape, generator=torch.Generator().manual_seed(5)).to(v)).sum() for v in found
               if v.requires_grad)  # fmt: skip
    if not isinstance(loss, torch.Tensor):
        return ["no gradients at all"]
    loss.backward()
    names = {"gated_prompt_tokens": "prompts", "gated_prompt_gate_logits": "gates",
             "gated_prompt_temperatures": "temperatures"}  # fmt: skip
    wrong = []
    for name, parameter in model.named_parameters():
        kind = next((word for key, word in names.items() if key in name), None)
        if kind and (parameter.grad is None or not bool((parameter.grad != 0).any())):
            wrong.append(f"no gradient for {kind}")
    return wrong


def _same_one_by_one(model: nn.Module, run: Run) -> bool:
    """Whether two images give the same together and alone. Outputs without a batch axis are left out."""
    with torch.no_grad():
        together = values(run(model, slice(None)))
        try:
            parts = [values(run(model, slice(i, i + 1))) for i in range(2)]
        except Exception:  # texts against images, say
            return False
    return all(
        _close([torch.cat((a, b))], [t])
        for t, a, b in zip(together, *parts, strict=True)
        if t.ndim and a.ndim and len(t) == 2 * len(a)
    )


def _close(found: list[torch.Tensor], wanted: list[torch.Tensor], within: float = 1e-3) -> bool:
    return len(found) == len(wanted) and all(
        a.shape == b.shape and float((a - b).abs().max()) <= within * float(b.abs().max()) + 1e-6
        for a, b in zip(found, wanted, strict=True)
        if b.numel()
    )


def _equal(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> bool:
    return len(found) == len(wanted) and all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(found, wanted, strict=True)
    )
