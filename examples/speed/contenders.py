# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The contenders: gated prompts and their alternatives, all on ViTs of the same size with random weights."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from gated_prompt import GatedPromptConfig, find_vision_transformer, prune

SIZES = {
    "tiny": {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 3},
    "small": {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
    "base": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
}
CLASSES = 100


def plain(size: str, prompts: int) -> Any:
    """(a) The frozen ViT with a trained head, no prompts: the lower bound."""
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(num_labels=CLASSES, **SIZES[size])).requires_grad_(False)
    model.classifier.requires_grad_(True)
    return model


def one_token(size: str, prompts: int) -> nn.Module:
    """(a+1) The same with one trained token, so that the backward pass reaches the input, as with prompts."""
    return extra_tokens(size, 1)


class ExtraTokens:
    """Insert trained tokens after CLS before the first block, and remove them after the last."""

    def __init__(self, tokens: nn.Parameter) -> None:
        self.tokens = tokens

    def enter(self, block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        tokens = self.tokens.to(hidden.dtype).expand(hidden.shape[0], -1, -1)
        return torch.cat((hidden[:, :1], tokens, hidden[:, 1:]), dim=1), *args[1:]

    def leave(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = torch.cat((hidden[:, :1], hidden[:, 1 + self.tokens.shape[0] :]), dim=1)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def extra_tokens(size: str, prompts: int) -> nn.Module:
    """(b) The ViT with P trained tokens concatenated once: the lower bound with prompts in the token sequence."""
    model = plain(size, prompts)
    trained = nn.Parameter(torch.randn(prompts, SIZES[size]["hidden_size"]) * 0.02)
    model.register_parameter("tokens", trained)
    tokens, blocks = ExtraTokens(trained), find_vision_transformer(model).blocks
    blocks[0].register_forward_pre_hook(tokens.enter)
    blocks[-1].register_forward_hook(tokens.leave)
    return model


def lora(size: str, prompts: int) -> nn.Module:
    """(d) PEFT's LoRA of rank 8 on queries and values, with a trained head."""
    model = plain(size, prompts)
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    targets = [name for name in ("q_proj", "v_proj", "query", "value") if name in names]
    return get_peft_model(model, LoraConfig(r=8, target_modules=targets, modules_to_save=["classifier"]))


def prompted(size: str, prompts: int, **settings: Any) -> nn.Module:
    config = GatedPromptConfig(num_virtual_tokens=prompts, **{"prompt_dropout": 0.0, **settings})
    return get_peft_model(plain(size, prompts), config)


def gated(size: str, prompts: int) -> nn.Module:
    """Gated prompts as initialized by default, sigmoid(-5): in the token sequence of every block but the last."""
    return prompted(size, prompts)


def pruned(size: str, prompts: int) -> nn.Module:
    """Pruned gated prompts with closed gates: in eval mode, the prompts are keys and values only."""
    model = prompted(size, prompts, gate_init=-20.0)
    prune(model, 1e-6)
    return model


def half(size: str, prompts: int) -> nn.Module:
    """Gated prompts that leave after the first half of the blocks. The others do not run."""
    depth = ViTConfig(**SIZES[size]).num_hidden_layers
    return prompted(size, prompts, read_from=(depth + 1) // 2 - 1)


def deep(size: str, prompts: int) -> nn.Module:
    """VPT-deep, P prompts in every block."""
    return prompted(size, prompts, deep=True, temperature=False)


def deep_dropout(size: str, prompts: int) -> nn.Module:
    """The same with prompt dropout 0.1: in training, each image has different keys and values."""
    return prompted(size, prompts, deep=True, temperature=False, prompt_dropout=0.1)


def zero_start(size: str, prompts: int) -> nn.Module:
    """P prompts in every block, read in a softmax of their own."""
    return prompted(size, prompts, deep=True, zero_start=True, temperature=False)


class ResearchBlock(nn.Module):
    """One block as in typical research code, with explicit attention."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, tokens: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
        b, n, d = tokens.shape
        q, k, v = self.qkv(self.norm1(tokens)).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attention = ((q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5 / tau).softmax(dim=-1)
        tokens = tokens + self.proj((attention @ v).transpose(1, 2).reshape(b, n, d))
        return tokens + self.fc2(F.gelu(self.fc1(self.norm2(tokens))))


class Research(nn.Module):
    """Gated prompts (paper, Section 4), or VPT-deep, as in typical research code: re-inserted at every block."""

    def __init__(self, size: str, prompts: int, deep: bool) -> None:
        super().__init__()
        self.deep = deep
        shape = SIZES[size]
        width, depth = shape["hidden_size"], shape.get("num_hidden_layers", 12)
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.cls, self.positions = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.zeros(1, 197, width))
        self.blocks = nn.ModuleList(
            ResearchBlock(width, shape["num_attention_heads"], shape["intermediate_size"]) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.requires_grad_(False)
        self.prompts = nn.Parameter(torch.randn(depth if deep else 1, prompts, width) * 0.02)
        self.gates, self.temperatures = nn.Parameter(torch.full((depth - 1,), -5.0)), nn.Parameter(torch.ones(depth))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        count = self.prompts.shape[1]
        x = self.patches(pixel_values).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls.expand(len(x), -1, -1), x), dim=1) + self.positions
        x = torch.cat((x[:, :1], self.prompts[:1].expand(len(x), -1, -1), x[:, 1:]), dim=1)
        for index, block in enumerate(self.blocks):
            if self.deep and index > 0:
                fresh = self.prompts[index].expand(len(x), -1, -1)
                x = torch.cat((x[:, :1], fresh, x[:, 1 + count :]), dim=1)
            out = block(x, self.temperatures[index])
            if index < len(self.gates) and not self.deep:
                g = torch.sigmoid(self.gates[index])
                mixed = g * out[:, 1 : 1 + count] + (1 - g) * x[:, 1 : 1 + count]
                out = torch.cat((out[:, :1], mixed, out[:, 1 + count :]), dim=1)
            x = out
        return self.head(self.norm(x)[:, 0])


def research(size: str, prompts: int) -> nn.Module:
    """(c) Gated prompts as in typical research code."""
    torch.manual_seed(0)
    return Research(size, prompts, deep=False)


def research_deep(size: str, prompts: int) -> nn.Module:
    """(c-deep) VPT-deep as in typical research code."""
    torch.manual_seed(0)
    return Research(size, prompts, deep=True)


CONTENDERS: dict[str, Callable[[str, int], nn.Module]] = {
    "plain": plain,
    "one_token": one_token,
    "extra_tokens": extra_tokens,
    "research": research,
    "lora": lora,
    "gated": gated,
    "pruned": pruned,
    "half": half,
    "research_deep": research_deep,
    "deep": deep,
    "deep_dropout": deep_dropout,
    "zero_start": zero_start,
}


def logits_of(output: Any) -> torch.Tensor:
    """Return the logits (B, C) from a contender's output."""
    logits: torch.Tensor = output if isinstance(output, torch.Tensor) else output.logits
    return logits
