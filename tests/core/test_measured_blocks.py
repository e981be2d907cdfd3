# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What names promise is measured at injection: where keys come from, and that tokens meet in the attention only."""

import pytest
import torch
import torch.nn.functional as F
import transformers
from peft import get_peft_model
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from gated_prompt import ArchitectureError, GatedPromptConfig, find_vision_transformer
from gated_prompt.architecture.masks import refuse_packed, widen_argument
from gated_prompt.architecture.measured import measured
from helpers.models import bank_of, images, vit
from helpers.timm_like import Attention, TimmLikeViT


class Block(nn.Module):
    """A ViT's block made anew around its attention, in an order that its names do not tell."""

    def __init__(self, block: nn.Module, kind: str) -> None:
        super().__init__()
        self.kind, self.attention = kind, block.attention
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.fc = nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "shift":  # each token sees its neighbour, as by a convolution
            x = x + 0.5 * x.roll(1, dims=1)
        attended = self.attention(x if self.kind == "post" else self.norm1(x))
        attended = attended[0] if isinstance(attended, tuple) else attended
        x = self.norm1(x + attended) if self.kind == "post" else x + attended
        return self.norm2(x + self.fc(x)) if self.kind == "post" else x + self.fc(self.norm2(x))


class Tower(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        base = vit().vit
        blocks = base.layers if hasattr(base, "layers") else base.encoder.layer
        self.embeddings, self.head = base.embeddings, nn.Linear(32, 3)
        self.blocks = nn.ModuleList(Block(block, kind) for block in blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embeddings(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0])


def adapted(kind: str, **settings: bool) -> nn.Module:
    torch.manual_seed(0)
    config = GatedPromptConfig(num_virtual_tokens=3, temperature=False, prompt_dropout=0.0, **settings)
    return get_peft_model(Tower(kind).eval(), config).eval()


@torch.no_grad()
@pytest.mark.parametrize(("kind", "passive"), [("pre", 4), ("post", 0)])
def test_deep_prompts_of_blocks_in_another_order(kind: str, passive: int) -> None:
    model = adapted(kind, deep=True, modules_to_save=[])
    bank, base = bank_of(model), model.base_model.model
    assert len(bank.can_be_passive) == passive
    tokens = bank.gated_prompt_tokens["default"].normal_(generator=torch.Generator().manual_seed(1))
    found = model(images())
    with model.disable_adapter():
        x = base.embeddings(images())
        for block, prompts in zip(base.blocks, tokens, strict=True):
            x = block(torch.cat((x[:, :1], prompts.expand(len(x), -1, -1), x[:, 1:]), dim=1))
            x = torch.cat((x[:, :1], x[:, 4:]), dim=1)
    assert torch.allclose(found, base.head(x[:, 0]), atol=1e-4)


def test_zero_start_needs_what_was_measured() -> None:
    adapted("pre", deep=True, zero_start=True)
    with pytest.raises(ArchitectureError, match="zero_start=True needs an attention"):
        adapted("post", deep=True, zero_start=True)


def test_tokens_that_meet_outside_of_the_attention_are_refused() -> None:
    with pytest.raises(ArchitectureError, match="in Block tokens reach their neighbours outside of the attention"):
        adapted("shift")


def test_measuring_leaves_the_model_as_it_was() -> None:
    model = Tower("pre").train()
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    state, random = {n: p.clone() for n, p in model.state_dict().items()}, torch.get_rng_state()
    measured(find_vision_transformer(model))
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == before
    assert all(torch.equal(p, state[n]) for n, p in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_causal_attention_is_refused_whatever_it_is_called() -> None:
    def causal(module, query, key, value, mask, **kwargs):
        return F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2), None

    AttentionInterface.register("causal_for_a_test", causal)
    base = vit()
    base.set_attn_implementation("causal_for_a_test")
    with pytest.raises(ArchitectureError, match="each token attends to earlier ones only"):
        get_peft_model(base, GatedPromptConfig())


def test_the_eager_function_is_that_of_the_class() -> None:
    """Llama 4 has one for text and one for images in the same file."""
    if not hasattr(transformers, "Llama4VisionModel"):
        pytest.skip("this transformers has no Llama 4")
    from transformers.models.llama4 import modeling_llama4 as source

    from gated_prompt.architecture.attention import find_attention

    config = transformers.Llama4VisionConfig(hidden_size=32, num_attention_heads=4, intermediate_size=64)
    assert find_attention(source.Llama4VisionEncoderLayer(config)).eager is source.vision_eager_attention_forward


class BiasOutside(Attention):
    """timm's EVA: the bias of the queries is added outside of qkv, whose weight is used without a call."""

    def forward(self, x: torch.Tensor, rope: torch.Tensor | None = None) -> torch.Tensor:
        bias = torch.cat((self.q_bias, torch.zeros(32), self.q_bias))
        parts = F.linear(x, self.qkv.weight, bias).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        queries = self.q_norm(parts[0]) if hasattr(self, "q_norm") else parts[0]
        mixed = F.scaled_dot_product_attention(queries, parts[1], parts[2])
        return self.proj(mixed.transpose(1, 2).flatten(2))


def bias_outside(normed: bool) -> nn.Module:
    torch.manual_seed(0)
    base = TimmLikeViT(depth=3, width=32, image_size=32, patch_size=8, labels=5).eval()
    for block in base.blocks:
        block.attn.__class__ = BiasOutside
        block.attn.q_bias = nn.Parameter(torch.randn(32))
        if not normed:
            del block.attn.q_norm
    return base


@torch.no_grad()
def test_a_query_bias_outside_of_qkv() -> None:
    """The temperature divides queries with their bias: as if queries and bias were made smaller."""
    config = GatedPromptConfig(num_virtual_tokens=3, temperature_init=2.0, temperature=False, prompt_dropout=0.0)
    model = get_peft_model(bias_outside(normed=True), config).eval()
    found = model(images())
    smaller = bias_outside(normed=True)
    for block in smaller.blocks:
        block.attn.qkv.weight[:32] /= 2
        values = block.attn.q_bias.clone()
        block.attn.forward = _with_halved_query_bias(block.attn, values)
    same = GatedPromptConfig(num_virtual_tokens=3, temperature=False, prompt_dropout=0.0)
    other = get_peft_model(smaller, same).eval()
    bank_of(other).gated_prompt_tokens["default"].copy_(bank_of(model).gated_prompt_tokens["default"])
    assert torch.allclose(other(images()), found, atol=1e-5)


def _with_halved_query_bias(attention: nn.Module, bias: torch.Tensor):
    def forward(x: torch.Tensor, rope: torch.Tensor | None = None) -> torch.Tensor:
        whole = torch.cat((bias / 2, torch.zeros(32), bias))
        parts = F.linear(x, attention.qkv.weight, whole).unflatten(-1, (3, attention.heads, -1))
        mixed = F.scaled_dot_product_attention(*parts.permute(2, 0, 3, 1, 4))
        return attention.proj(mixed.transpose(1, 2).flatten(2))

    return forward


def test_where_no_module_stands_behind_the_bias_the_temperature_is_refused() -> None:
    with pytest.raises(ArchitectureError, match=r"query bias outside its module `qkv`, .*temperature=False"):
        get_peft_model(bias_outside(normed=False), GatedPromptConfig())
    get_peft_model(bias_outside(normed=False), GatedPromptConfig(temperature=False))(images())


def test_padding_is_not_packing() -> None:
    """NaFlexViT: rows of padding attend to nothing; two images in one sequence attend to nothing in common."""
    valid = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    padded = (valid[:, None, :, None] & valid[:, None, None, :]).float().log()
    refuse_packed(nn.Identity(), (padded, padded == 0), 4)
    packed = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2)).bool()[None, None]
    with pytest.raises(ArchitectureError, match="several images packed into one sequence"):
        refuse_packed(nn.Identity(), (packed,), 4)


def test_complex_rotations_do_not_turn_prompts() -> None:
    """Llama 4: a complex number of length 1 for each token and pair of channels, (N, 1, d / 2)."""
    turns = torch.polar(torch.ones(5, 1, 3), torch.rand(5, 1, 3))
    widened = widen_argument("freqs_ci", turns, slice(1, 3), 5)
    assert torch.equal(torch.cat((widened[:1], widened[3:])), turns)
    assert torch.equal(widened[1:3], torch.ones(2, 1, 3, dtype=turns.dtype))


class NamesInterface(nn.Module):
    """An attention whose code names AttentionInterface, but that never gets a function from it (Kosmos-2.5)."""

    def __init__(self) -> None:
        super().__init__()
        attention = next(m for m in vit().modules() if hasattr(m, "config") and hasattr(m, "q_proj"))
        self.config, self.q_proj, self.k_proj = attention.config, attention.q_proj, attention.k_proj
        self.v_proj, self.o_proj = attention.v_proj, nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        function = getattr(ALL_ATTENTION_FUNCTIONS, self.config._attn_implementation, eager_attention_forward)
        q, k, v = (one(x).unflatten(-1, (4, 8)).transpose(1, 2) for one in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(function(self, q, k, v, None)[0].flatten(2))


def eager_attention_forward(module, query, key, value, mask, **kwargs):
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2), None


@torch.no_grad()
def test_an_interface_that_is_named_but_not_used() -> None:
    if not hasattr(vit().vit, "layers"):
        pytest.skip("the attention of this transformers has other names")
    torch.manual_seed(0)
    base = Tower("pre").eval()
    for block in base.blocks:
        block.attention = NamesInterface()
    config = GatedPromptConfig(num_virtual_tokens=3, temperature_init=2.0, temperature=False, prompt_dropout=0.0)
    model = get_peft_model(base, config).eval()
    assert bank_of(model).can_be_passive == frozenset()
    found = model(images())
    for block in base.blocks:
        block.attention.q_proj.weight /= 2
        block.attention.q_proj.bias /= 2
    bank_of(model).adapters["default"].config.temperature_init = 1.0
    assert torch.allclose(model(images()), found, atol=1e-5)


def test_linears_of_another_kind_are_named() -> None:
    base = torch.ao.quantization.quantize_dynamic(vit(), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(ArchitectureError, match=r"hold torch.ao.nn.quantized.dynamic.*Linear in place of nn.Linear"):
        get_peft_model(base, GatedPromptConfig())
