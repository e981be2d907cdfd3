"""Adapted models of every family, and their tensors."""

import re
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn

from gated_prompt import GatedPromptConfig

from .families import Case
from .models import bank_of

P = 5


def prompted(
    case: Case, base: nn.Module | None = None, attention: str = "sdpa", seed: int = 4, **settings: Any
) -> PeftModel:
    """The case with prompts as large as its tokens, gates half open and temperatures far from 1."""
    config = GatedPromptConfig(**{"num_virtual_tokens": P, "prompt_dropout": 0.0, "gate_init": 0.0, **settings})
    model = get_peft_model(case.build(attention) if base is None else base, config).eval()
    noise = torch.Generator().manual_seed(seed)
    bank = bank_of(model)
    for tokens in bank.gated_prompt_tokens.values():
        tokens.data = torch.randn(tokens.shape, generator=noise)
    for logits in bank.gated_prompt_gate_logits.values():
        logits.data += torch.randn(logits.shape, generator=noise)
    for temperatures in bank.gated_prompt_temperatures.values():
        temperatures.data *= 0.5 + torch.rand(temperatures.shape, generator=noise)
    for gates in bank.gated_prompt_head_gates.values():
        gates.data = torch.randn(gates.shape, generator=noise)
    return model


def tensors(output: Any, path: str = "") -> dict[str, torch.Tensor]:
    """Every tensor of an output by its path."""
    if isinstance(output, torch.Tensor):
        return {path: output}
    if isinstance(output, dict):  # transformers' outputs are dicts
        return {k: t for name, part in output.items() for k, t in tensors(part, f"{path}.{name}").items()}
    if isinstance(output, (tuple, list)):
        return {k: t for i, part in enumerate(output) for k, t in tensors(part, f"{path}.{i}").items()}
    return {}


def read(case: Case, output: Any) -> torch.Tensor:
    """The case as one table row."""
    value = output[case.read_from]
    return torch.cat([part.flatten() for part in value]) if isinstance(value, (tuple, list)) else value.flatten()


@torch.enable_grad()
def trained(case: Case, model: PeftModel) -> dict[str, torch.Tensor]:
    """Gradients of one training step, by short name; the base's own parameters must have none."""
    model.train()
    value = read(case, case.run(model))
    weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(6))
    (value * weights).sum().backward()
    found = {}
    for name, parameter in model.named_parameters():
        trained = "gated_prompt" in name or "modules_to_save" in name
        mine = trained and "decoder_pos_embed" not in name  # which is fixed in ViT-MAE
        assert parameter.requires_grad == mine, name
        if parameter.grad is not None:
            found[re.sub(r"^.*gated_prompt_|^base_model\.model\.|\.default|\.modules_to_save", "", name)] = (
                parameter.grad
            )
    return found
