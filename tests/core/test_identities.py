"""The identities of the method, bit for bit with gradients off, on ViT and DINOv2 (all families: test_families)."""

from functools import partial
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model

import gated_prompt
from gated_prompt import GatedPromptConfig, find_vision_transformer
from helpers.models import bank_of, dinov2, images, in_sequence, vit

BASES = {"vit": vit, "dinov2": dinov2}


@pytest.fixture(params=BASES, name="make")
def _make(request):
    return BASES[request.param]


def prompted(make, prompts: torch.Tensor | None = None, gate: float | None = None, **settings) -> PeftModel:
    model = get_peft_model(make(), GatedPromptConfig(num_virtual_tokens=5, **settings)).eval()
    bank = bank_of(model)
    if prompts is not None:
        bank.gated_prompt_tokens["default"].data.copy_(prompts)
    if gate is not None:
        bank.gated_prompt_gate_logits["default"].data.fill_(gate)
    return model


PROMPTS = torch.randn(5, 32, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def test_disabled_and_unloaded_are_the_base(make) -> None:
    base = make()
    wanted = base(images(), output_hidden_states=True)
    model = prompted(lambda: base, PROMPTS)
    assert not torch.equal(model(images()).logits, wanted.logits)
    with model.disable_adapter():
        disabled = model(images(), output_hidden_states=True)
    unloaded = model.unload()
    assert type(unloaded) is type(base)
    assert not any("gated_prompt" in name for name, _ in unloaded.named_modules())
    hooks = [
        h for m in unloaded.modules() for table in (m._forward_hooks, m._forward_pre_hooks) for h in table.values()
    ]
    assert not any(type(hook).__module__.startswith("gated_prompt") for hook in hooks)
    for found in (disabled, unloaded(images(), output_hidden_states=True)):
        assert torch.equal(found.logits, wanted.logits)
        for a, b in zip(found.hidden_states, wanted.hidden_states, strict=True):
            assert torch.equal(a, b)


@torch.no_grad()
def test_open_gates_are_vpt_shallow(make) -> None:
    shallow = prompted(make, PROMPTS, gates=False, temperature=False)
    gated = prompted(make, PROMPTS, gate=100.0)
    assert torch.equal(gated(images()).logits, shallow(images()).logits)


@torch.no_grad()
def test_closed_gates_are_vpt_deep_with_equal_prompts(make) -> None:
    closed = prompted(make, PROMPTS, gate=-200.0)
    deep = prompted(make, PROMPTS.expand(4, -1, -1), deep=True, temperature=False)
    torch.testing.assert_close(closed(images()).logits, deep(images()).logits, rtol=1e-5, atol=1e-5)
    assert gated_prompt.prune(closed, 0.0) == [0, 1, 2, 3]  # now as keys and values only, as those of deep
    assert torch.equal(closed(images()).logits, deep(images()).logits)
    with closed.disable_adapter():  # a closed gate is not the base model
        assert not torch.equal(closed(images()).logits, deep(images()).logits)


@torch.no_grad()
def test_closed_gates_from_block_k_are_deep_from_block_k(make) -> None:
    closed = prompted(make, PROMPTS, gate=-200.0, insert_at=2)
    deep = prompted(make, PROMPTS.expand(2, -1, -1), deep=True, temperature=False, insert_at=2)
    assert gated_prompt.prune(closed, 0.0) == [2, 3]
    assert torch.equal(closed(images()).logits, deep(images()).logits)


@torch.no_grad()
def test_save_load_save(make, tmp_path: Path) -> None:
    model = prompted(make, PROMPTS, gate=-0.3, pooling="prompts_and_patches")
    bank_of(model).gated_prompt_temperatures["default"].data.uniform_(0.5, 2.0)
    wanted = model(images()).logits
    model.save_pretrained(tmp_path / "a")
    again = PeftModel.from_pretrained(make(), tmp_path / "a").eval()
    assert torch.equal(again(images()).logits, wanted)
    again.save_pretrained(tmp_path / "b")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@torch.no_grad()
def test_shapes_are_those_of_the_base(make) -> None:
    base = make().base_model
    wanted = base(images(), output_hidden_states=True)
    for settings in ({}, {"insert_at": 2}, {"deep": True}, {"pooling": "patches"}):
        model = prompted(lambda: make().base_model, **settings)
        found = model(images(), output_hidden_states=True)
        assert found.last_hidden_state.shape == wanted.last_hidden_state.shape
        assert [h.shape for h in found.hidden_states] == [h.shape for h in wanted.hidden_states]
        as_tuple = model(images(), output_hidden_states=True, return_dict=False)
        assert [h.shape for h in as_tuple[-1]] == [h.shape for h in wanted.hidden_states]


@torch.no_grad()
def test_hidden_states_hold_prefix_and_patches_not_prompts(make) -> None:
    """The first entry is the embedding output itself, and the input of block 0 had the prompts after the CLS token."""
    model, seen = prompted(make, PROMPTS), []
    vit_model = find_vision_transformer(model.base_model.model)
    norm = vit_model.blocks[0].get_submodule(vit_model.attentions[0].norm)
    handle = norm.register_forward_hook(lambda _m, args, _o: seen.append(args[0]))
    states = model(images(), output_hidden_states=True).hidden_states
    handle.remove()
    tokens = seen[0]
    assert torch.equal(tokens[:, 1:6], PROMPTS.expand(2, -1, -1))  # no position embedding is added to prompts
    assert torch.equal(torch.cat((tokens[:, :1], tokens[:, 6:]), dim=1), states[0])


def test_pooling_is_the_mean_before_the_final_norm() -> None:
    from helpers.golden_cases import Case

    case = Case("moco_gated_temp", torch.float64)
    for pooling, first, last in (("prompts", 1, 7), ("patches", 7, 23), ("prompts_and_patches", 1, 23)):
        config = case.config()
        config.pooling = pooling
        model = get_peft_model(case.base(), config).eval()
        vit_model, seen = model.base_model.model.vit, []
        block = bank_of(model).blocks[-1]

        def record(*args, own=partial(type(block).forward, block), seen=seen, **kwargs):  # noqa: B008
            seen.append(own(*args, **kwargs))
            return seen[0]

        block.forward.before = record  # what the block itself returns, before the adapter removes the prompts
        pixels, _ = case.batch(0)
        with torch.no_grad(), in_sequence(model):  # so that the last block has the prompts in its output
            features = vit_model(pixels).last_hidden_state[:, 0]
            tokens = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
            wanted = vit_model.layernorm(tokens[:, first:last].mean(1))
        assert tokens.shape[1] == 23
        torch.testing.assert_close(features, wanted, rtol=0, atol=1e-12)
