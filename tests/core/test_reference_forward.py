# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Three families against forwards written out by hand from the method's equations, without a single hook.

ViT is the plain case; DINOv3 rotates its last tokens; BEiT adds a relative position bias, once per block and once
for all. Each reference is first held against the base model, with no prompts in it.
"""

import math
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn

from gated_prompt import GatedPromptConfig
from helpers.families import CASES, PATCH, SIZE, Case
from helpers.models import bank_of

HEADS, P, GRID = 4, 5, SIZE // PATCH
NAMES = ["ViTForImageClassification", "DINOv3ViTModel", "BeitForImageClassification-cls"]
SETTINGS = [
    {},
    {"insert_at": 1, "gated_blocks": [1, 3]},
    {"deep": True},
    {"deep": True, "insert_at": 2, "temperature": False, "temperature_init": 1.7},
    {"pooling": "prompts_and_patches"},
    {"read_from": 2},
    {"insert_at": 1, "read_from": 1, "pooling": "prompts_and_patches"},
    {"deep": True, "insert_at": 1, "read_from": 2},
]
IDS = ["gated", "later", "deep", "deep-later", "pooled", "read-at-2", "block-1-alone", "deep-read-at-2"]


def pick(block: nn.Module, *names: str) -> nn.Module:
    """The submodule under whichever name this version and family of transformers gives it."""
    named = dict(block.named_modules())
    return next(named[name] for name in names if name in named)


def run_block(block: nn.Module, x: torch.Tensor, tau: float, bias: Any, rotate: Any) -> torch.Tensor:
    """One pre-norm block on tokens x (B, N, D)."""
    h = pick(block, "layernorm_before", "norm1")(x)
    q, k, v = (
        pick(block, *names)(h).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for names in (
            ("attention.q_proj", "attention.attention.query"),
            ("attention.k_proj", "attention.attention.key"),
            ("attention.v_proj", "attention.attention.value"),
        )
    )
    q, k = rotate(q), rotate(k)
    logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) / tau + bias
    mixed = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)
    scales = [p for n, p in block.named_parameters() if "lambda" in n] or [1.0, 1.0]
    x = x + scales[0] * pick(block, "attention.o_proj", "attention.output.dense")(mixed)
    h = pick(block, "layernorm_after", "norm2")(x)
    h = nn.functional.gelu(pick(block, "mlp.fc1", "intermediate.dense", "mlp.up_proj")(h))
    return x + scales[1] * pick(block, "mlp.fc2", "output.dense", "mlp.down_proj")(h)


class Reference:
    """The parts of the base model, reassembled with prompts."""

    def __init__(self, case: Case) -> None:
        self.case, self.model = case, case.build()
        self.named = dict(self.model.named_parameters())
        lists = {n: m for n, m in self.model.named_modules() if isinstance(m, nn.ModuleList)}
        (self.blocks,) = (m for n, m in lists.items() if n.endswith(("layer", "layers")))

    def parameter(self, *ends: str) -> torch.Tensor:
        return next(p for n, p in self.named.items() if n.endswith(ends))

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        weight = next(p for p in self.named.values() if p.ndim == 4)
        bias = self.parameter("projection.bias", "patch_embeddings.bias")
        patches = nn.functional.conv2d(pixels, weight, bias, stride=PATCH).flatten(2).transpose(1, 2)
        prefix = [p for n, p in self.named.items() if n.endswith(("cls_token", "register_tokens"))]
        x = torch.cat([p.expand(len(pixels), -1, -1) for p in (*prefix, patches)], dim=1)
        positions = [p for n, p in self.named.items() if n.endswith("position_embeddings")]
        return x + positions[0] if positions else x

    def bias(self, table: torch.Tensor | None, prompts: int) -> Any:
        """BEiT's table (R, H) looked up for [CLS, prompts, patches]: prompts get nothing and give nothing."""
        if table is None:
            return 0.0
        n = 1 + prompts + GRID * GRID
        out = torch.zeros(HEADS, n, n)
        places = [None] + [(i // GRID, i % GRID) for i in range(GRID * GRID)]  # None is CLS
        at = [0, *range(1 + prompts, n)]
        for i, one in zip(at, places, strict=True):
            for j, two in zip(at, places, strict=True):
                if one is None or two is None:
                    row = -1 if one is two else -3 if one is None else -2
                else:
                    row = (one[0] - two[0] + GRID - 1) * (2 * GRID - 1) + one[1] - two[1] + GRID - 1
                out[:, i, j] = table[row]
        return out

    def rotate(self, q: torch.Tensor) -> torch.Tensor:
        """DINOv3: patches, the last tokens, are rotated by angles of their centres in [-1, 1]; the rest are not."""
        if self.case.family != "DINOv3":
            return q
        d = q.shape[-1]
        centres = 2 * (torch.arange(GRID) + 0.5) / GRID - 1
        yx = torch.stack(torch.meshgrid(centres, centres, indexing="ij"), dim=-1).reshape(-1, 2)
        frequencies = self.model.config.to_dict().get("rope_theta") or self.model.config.rope_parameters["rope_theta"]
        frequencies = frequencies ** -torch.arange(0, 1, 4 / d)
        angles = (2 * math.pi * yx[:, :, None] * frequencies).flatten(1).tile(2)
        still, last = q[:, :, : -GRID * GRID], q[:, :, -GRID * GRID :]
        one, two = last.chunk(2, dim=-1)
        turned = last * angles.cos() + torch.cat((-two, one), dim=-1) * angles.sin()
        return torch.cat((still, turned), dim=2)

    def read(self, x: torch.Tensor) -> torch.Tensor:
        norm = next(m for n, m in self.model.named_modules() if n.rpartition(".")[2] in ("layernorm", "norm"))
        slot = norm(x)[:, 0]
        return slot if self.case.family == "DINOv3" else self.model.classifier(slot)

    def run(
        self, pixels: torch.Tensor, bank: dict[str, torch.Tensor], config: GatedPromptConfig | None
    ) -> torch.Tensor:
        x, front, k = self.embed(pixels), self.case.prefix, config.insert_at if config else len(self.blocks)
        tables = {n: p for n, p in self.named.items() if n.endswith("relative_position_bias_table")}
        shared = next((p for n, p in tables.items() if not any(part.isdigit() for part in n.split("."))), None)
        last = len(self.blocks) - 1 if config is None or config.read_from is None else config.read_from
        gated = [] if config is None or config.deep else config.gated_blocks or list(range(k, last))
        for index, block in enumerate(self.blocks[: last + 1]):
            if index == k or (index > k and config.deep):
                tokens = bank["tokens"][index - k if config.deep else 0].expand(len(x), -1, -1)
                x = torch.cat((x[:, :front], tokens, x[:, front + (P if index > k else 0) :]), dim=1)
            count = P if index >= k else 0
            tau = 1.0 if index < k else bank["temperatures"][index - k].item() if config.temperature else 1.7
            own = next((p for n, p in tables.items() if f".{index}." in n), None)
            bias = self.bias(own, count) + self.bias(shared, count)
            before, x = x[:, front : front + P], run_block(block, x, tau, bias, self.rotate)
            if index in gated:
                g = torch.sigmoid(bank["gate_logits"][gated.index(index)])
                mixed = g * x[:, front : front + P] + (1 - g) * before
                x = torch.cat((x[:, :front], mixed, x[:, front + P :]), dim=1)
        if config is not None and config.pooling:
            x = torch.cat((x[:, front:].mean(1, keepdim=True), x[:, 1:]), dim=1)
        return self.read(x)


@pytest.fixture(params=NAMES)
def case(request: pytest.FixtureRequest) -> Case:
    return next(case for case in CASES if case.id == request.param)


def output(case: Case, model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return case.run(model)[case.read_from]


@torch.no_grad()
def test_reference_without_prompts_is_the_base(case: Case) -> None:
    reference = Reference(case)
    found = reference.run(case.inputs()["pixel_values"], {}, None)
    assert torch.allclose(found, output(case, reference.model), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("settings", SETTINGS, ids=IDS)
def test_prompts_as_written_by_hand(case: Case, settings: dict[str, Any]) -> None:
    config = GatedPromptConfig(num_virtual_tokens=P, prompt_dropout=0.0, **settings)
    model = get_peft_model(case.build(), config).eval()
    noise, bank = torch.Generator().manual_seed(7), {}
    for name, parameter in bank_of(model).named_parameters():
        parameter.data = torch.randn(parameter.shape, generator=noise)
        if "temperatures" in name:
            parameter.data = 0.5 + parameter.data.abs()
        bank[name.removeprefix("gated_prompt_").removesuffix(".default")] = parameter.data
    found, base = output(case, model), output(case, case.build())
    wanted = Reference(case).run(case.inputs()["pixel_values"], bank, model.peft_config["default"])
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert (wanted - base).abs().max() > 0.01
