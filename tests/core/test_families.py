# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What every Vision Transformer family must satisfy (`families.py`)."""

import re
from collections.abc import Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from torch import nn

import gated_prompt
from gated_prompt import ArchitectureError, GatedPromptConfig, find_head_names, find_vision_transformer
from helpers import timm_like
from helpers.families import CASES, DEPTH, HERE, PATCH, SIZE, WIDTH, Case
from helpers.models import bank_of, in_sequence
from helpers.prompted import P, prompted, read, tensors, trained

transformers.logging.set_verbosity_error()
OUTPUTS = [case for case in HERE if case.config]  # those that return transformers' output objects


def cases(chosen: list[Case]) -> Any:
    return pytest.mark.parametrize("case", chosen, ids=[case.id for case in chosen])


def trained_a_little(model: PeftModel) -> PeftModel:
    """Move prompts, gates, temperatures and head away from their initial values."""
    noise = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=noise)
    return model


def assert_same(found: Any, wanted: Any) -> None:
    found, wanted = tensors(found), tensors(wanted)
    assert wanted
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert torch.equal(found[name], wanted[name]), name


def block_inputs(model: nn.Module, blocks: list[nn.Module]) -> list[list[torch.Tensor]]:
    """A list that forwards fill with the input of the first norm in each block: the tokens that the block sees."""
    seen: list[list[torch.Tensor]] = [[] for _ in blocks]
    for block, into in zip(blocks, seen, strict=True):
        norm = next(m for m in block.modules() if isinstance(m, nn.LayerNorm))
        norm.register_forward_pre_hook(lambda _, args, into=into: into.append(args[0].detach().clone()))
    return seen


def without_prompts(case: Case, hidden: torch.Tensor) -> torch.Tensor:
    return torch.cat((hidden[:, : case.prefix], hidden[:, case.prefix + P :]), dim=1)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    """The identities are bitwise without gradients; with them torch may pick another attention kernel."""
    with torch.no_grad():
        yield


@cases([case for case in CASES if not case.works and hasattr(transformers, case.name)])
def test_a_class_that_holds_its_blocks_and_cuts_its_maps_itself_is_refused(case: Case) -> None:
    base = case.build()
    keys = list(base.state_dict())
    with pytest.raises(ArchitectureError, match=f"{case.name} .*makes feature maps of their output, prompts included"):
        get_peft_model(base, GatedPromptConfig())
    assert list(base.state_dict()) == keys


@cases(HERE)
def test_detection(case: Case) -> None:
    model = case.build()
    vit = find_vision_transformer(model)
    assert (len(vit.blocks), len(vit.attentions), vit.hidden_size) == (DEPTH, DEPTH, WIDTH)
    assert (vit.num_prefix_tokens, vit.patch_values) == (case.prefix, 3 * PATCH * PATCH)
    assert tuple(find_head_names(model)) == case.head_here
    assert not any("decoder" in n or "text" in n for n, m in model.named_modules() if m in vit.blocks)


@cases(HERE)
@pytest.mark.parametrize("insert_at", [0, 2])
def test_prompts_stand_between_prefix_and_patches(case: Case, insert_at: int) -> None:
    size = 48 if case.takes_larger else SIZE
    larger = case.larger if case.takes_larger and case.larger else {}
    base = case.build()
    plain = block_inputs(base, find_vision_transformer(base).blocks)
    model = prompted(case, insert_at=insert_at)
    seen = block_inputs(model, find_vision_transformer(model.base_model.model).blocks)
    wanted, found = case.run(base, size, **larger), case.run(model, size, **larger)

    tokens = bank_of(model).gated_prompt_tokens["default"]
    before, (after,) = plain[insert_at][0], seen[insert_at]
    assert before.shape[1] == case.tokens(size)
    assert torch.equal(without_prompts(case, after), before)
    assert torch.equal(after[:, case.prefix : case.prefix + P], tokens.expand(len(after), -1, -1))
    for below in range(insert_at):
        assert torch.equal(seen[below][0], plain[below][0])
    assert {n: t.shape for n, t in tensors(found).items()} == {n: t.shape for n, t in tensors(wanted).items()}
    if insert_at <= case.last:
        assert (read(case, found) - read(case, wanted)).abs().max() > 1e-4


@cases(HERE)
def test_prompts_have_no_order(case: Case) -> None:
    """Prompts have no position, neither by rotation nor by bias: shuffling them changes nothing."""
    model, shuffled = prompted(case), prompted(case)
    tokens = bank_of(shuffled).gated_prompt_tokens["default"]
    tokens.data = tokens.data.flip(1)
    wanted, found = tensors(case.run(model)), tensors(case.run(shuffled))
    for name in wanted:
        assert (found[name] - wanted[name]).abs().max() <= 1e-5 * max(1.0, wanted[name].abs().max()), name


@cases(HERE)
def test_disabled_and_unloaded_are_the_base(case: Case) -> None:
    base = case.build().requires_grad_(False)  # frozen: SigLIP's pool takes another kernel for weights that are not
    wanted, keys = case.run(base), list(base.state_dict())
    model = trained_a_little(prompted(case))
    assert not torch.equal(read(case, case.run(model)), read(case, wanted))
    with model.disable_adapter():
        assert_same(case.run(model), wanted)
    restored = model.unload()
    assert list(restored.state_dict()) == keys
    assert_same(case.run(restored), wanted)


@cases(HERE)
def test_open_gates_are_no_gates(case: Case) -> None:
    shallow, gated = prompted(case, gates=False, temperature=False), prompted(case)
    bank = bank_of(gated)
    half_open = case.run(gated)
    bank.gated_prompt_gate_logits["default"].data.fill_(100.0)
    bank.gated_prompt_temperatures["default"].data.fill_(1.0)
    assert_same(case.run(gated), case.run(shallow))
    assert not torch.equal(read(case, case.run(gated)), read(case, half_open))


@cases(HERE)
def test_closed_gates_are_deep_with_equal_prompts(case: Case) -> None:
    closed, deep = prompted(case), prompted(case, deep=True)
    ours, theirs = bank_of(closed), bank_of(deep)
    ours.gated_prompt_gate_logits["default"].data.fill_(-200.0)
    theirs.gated_prompt_tokens["default"].data[:] = ours.gated_prompt_tokens["default"].data
    theirs.gated_prompt_temperatures["default"].data[:] = ours.gated_prompt_temperatures["default"].data
    found, wanted = read(case, case.run(closed)), read(case, case.run(deep))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    gated_prompt.prune(closed, 0.0)  # now both have the prompts as keys and values only
    assert_same(case.run(closed), case.run(deep))
    theirs.gated_prompt_tokens["default"].data[1] += 1.0
    assert not torch.equal(read(case, case.run(closed)), read(case, case.run(deep)))


@cases(HERE)
def test_save_load_save(case: Case, tmp_path: Path) -> None:
    model = trained_a_little(prompted(case))
    model.save_pretrained(tmp_path / "one")
    loaded = PeftModel.from_pretrained(case.build(), tmp_path / "one").eval()
    loaded.save_pretrained(tmp_path / "two")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    assert_same(case.run(loaded), case.run(model))


@cases(OUTPUTS)
def test_hidden_states_leave_the_prompts_out_and_attentions_keep_them(case: Case) -> None:
    everything = {"output_hidden_states": True, "output_attentions": True}
    base = case.build("eager")
    wanted = case.run(base, **everything)  # transformers 5 now has its capturing hooks on this base, before ours
    model = prompted(case, base, insert_at=1)
    seen = block_inputs(model, find_vision_transformer(model.base_model.model).blocks)
    found = case.run(model, **everything)

    shapes = {n: t.shape for n, t in tensors(wanted).items()}
    attentions = [n for n in shapes if re.search(r"attentions\.\d+$", n) and "text" not in n and "decoder" not in n]
    assert len(attentions) >= (DEPTH if case.reports else 0)
    for name in attentions:
        block = int(name.rpartition(".")[2])
        length = case.tokens() + (P if 1 <= block < DEPTH else 0)
        if block < DEPTH:
            assert tensors(found)[name].shape == (2, 4, length, length)
            attention = tensors(found)[name]
            assert torch.allclose(attention.sum(-1), torch.ones(()), atol=1e-5)
            assert (attention[..., case.prefix : case.prefix + length - case.tokens()] > 0).all()
            if case.family == "SigLIP 2":  # the padding of the smaller image stays masked
                assert (attention[1, ..., length - 16 + 9 :] == 0).all()
                assert (attention[..., : length - 16 + 9] > 0).all()
            shapes[name] = tensors(found)[name].shape
    assert {n: t.shape for n, t in tensors(found).items()} == shapes

    states = {n: t for n, t in tensors(found).items() if re.search(r"hidden_states\.\d+$", n) and "text" not in n}
    assert len(states) >= (DEPTH + 1 if attentions else 0)
    for name, state in states.items():
        block = int(name.rpartition(".")[2])
        if block < DEPTH:  # the state before each block: what it worked on, without prompts
            tokens = seen[block][0]
            assert torch.equal(state, tokens if block < 1 else without_prompts(case, tokens)), name

    as_tuple = case.run(model, **everything, return_dict=False)
    assert isinstance(as_tuple, tuple)
    in_order = list(tensors(found).values())
    assert len(tensors(as_tuple)) == len(in_order)
    for value, same in zip(tensors(as_tuple).values(), in_order, strict=True):
        assert torch.equal(value, same)


@cases(HERE)
def test_hooks_that_were_there_before_see_gated_tokens(case: Case) -> None:
    """transformers 5 captures outputs with hooks that a first forward installs, and users install their own."""
    base, left = case.build(), []
    blocks = find_vision_transformer(base).blocks
    for block in blocks:
        block.register_forward_hook(lambda _, args, out: left.append(out[0] if isinstance(out, tuple) else out))
    model = prompted(case, base)
    seen = block_inputs(model, blocks)
    with in_sequence(model):  # what leaves a block is then what enters the next
        case.run(model)
    assert len(left) == DEPTH
    for block in range(DEPTH - 1):
        assert torch.equal(left[block], seen[block + 1][0]), block
    assert left[-1].shape[1] == case.tokens()


@cases(HERE)
@pytest.mark.parametrize("deep", [False, True], ids=["gated", "deep"])
def test_every_parameter_is_trained(case: Case, deep: bool) -> None:
    gradients = trained(case, prompted(case, deep=deep))
    tokens, temperatures = gradients["tokens"], gradients["temperatures"]
    assert tokens.shape == ((DEPTH if deep else 1), P, WIDTH)
    used = tokens[: case.last + 1].abs().sum(-1)
    assert (used > 0).all()
    assert (temperatures[: case.last + 1] != 0).all()
    if not deep:
        assert gradients["gate_logits"].shape == (DEPTH - 1,)
        assert (gradients["gate_logits"][: case.last] != 0).all()
    for head in case.head_here:
        if head != "auxiliary_head":  # read by the loss alone
            assert all((g != 0).any() for n, g in gradients.items() if n.startswith(head)), head


@cases(OUTPUTS)
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "saved-tensors"])
def test_activation_checkpointing_gives_the_same_gradients(case: Case, reentrant: bool) -> None:
    wanted = trained(case, prompted(case))
    model = prompted(case)
    model.base_model.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    seen = block_inputs(model, find_vision_transformer(model.base_model.model).blocks)
    found = trained(case, model)
    assert [len(inputs) for inputs in seen[: case.last + 1]] == [2] * (case.last + 1), "nothing was computed twice"
    assert found.keys() == wanted.keys()
    for name in wanted:
        atol = 1e-6 * max(1.0, wanted[name].abs().max().item())
        assert torch.allclose(found[name], wanted[name], rtol=1e-4, atol=atol), name


@cases(OUTPUTS)
def test_sdpa_is_eager(case: Case) -> None:
    one, other = prompted(case, attention="sdpa"), prompted(case, attention="eager")
    found, wanted = tensors(case.run(one)), tensors(case.run(other))
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert (found[name] - wanted[name]).abs().max() <= 1e-5 * max(1.0, wanted[name].abs().max()), name


@cases([case for case in HERE if case.takes_larger and case.larger and case.family in ("BEiT", "Data2Vec-Vision")])
@pytest.mark.parametrize("size", [SIZE, 48])
def test_position_bias_is_not_stretched_over_prompts(case: Case, size: int) -> None:
    """`interpolate_pos_encoding` resizes the bias to the number of tokens: a no-op without prompts."""
    for model in (case.build(), prompted(case)):
        assert_same(case.run(model, size, interpolate_pos_encoding=True), case.run(model, size))


@cases([case for case in HERE if case.family == "SigLIP 2"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])  # with a boolean mask and with an additive one
def test_padding_stays_unseen(case: Case, attention: str) -> None:
    """Values in the padding of the smaller image have no effect, not even through the prompts."""
    for model in (case.build(attention), prompted(case, attention=attention)):
        inputs = case.inputs()
        wanted = model(**inputs)[case.read_from]
        inputs["pixel_values"][1, 9:] += 5.0
        assert torch.allclose(model(**inputs)[case.read_from], wanted, atol=1e-5)
        inputs["pixel_values"][1, :9] += 5.0
        assert not torch.allclose(model(**inputs)[case.read_from], wanted, atol=1e-5)


@cases([case for case in HERE if case.reports])
def test_temperature_divides_the_logits(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits are s / tau + b: from 1 to 2 they lose s / 2, from 2 to 4 they lose s / 4."""
    model, asked = prompted(case, attention="eager"), {"output_attentions": True}
    seen: list[torch.Tensor] = []

    def record(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
        seen.append(weights)
        return weights @ v

    monkeypatch.setattr(timm_like.F, "scaled_dot_product_attention", record)
    logits = []
    for tau in (1.0, 2.0, 4.0):
        bank_of(model).gated_prompt_temperatures["default"].data.fill_(tau)
        seen.clear()
        found = tensors(case.run(model, **(asked if case.config else {})))
        first = (
            seen[0] if seen else next(t for n, t in found.items() if n.endswith("attentions.0") and "text" not in n)
        )
        first = first[:1].double().log()  # SigLIP 2 pads the second image
        logits.append(first - first.mean(-1, keepdim=True))  # known up to a constant for each query
    one, two = logits[0] - logits[1], logits[1] - logits[2]
    assert one.abs().max() > 0.01
    assert torch.allclose(one, 2 * two, atol=1e-3 * one.abs().max().item())


@cases(HERE)
def test_what_the_output_reads(case: Case) -> None:
    """The output depends on the same final tokens as that of the base, and on no others."""
    for model in (case.build(), prompted(case)):
        assert slots_read(case, model) == case.reads_here


@torch.enable_grad()
def slots_read(case: Case, model: nn.Module) -> set[str]:
    """Indices of prefix tokens with a gradient, "patches" or "some patches", "all" for all tokens."""
    root = model.base_model.model if isinstance(model, PeftModel) else model
    kept = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        kept.append(output[0] if isinstance(output, tuple) else output)
        kept[-1].retain_grad()

    find_vision_transformer(root).blocks[case.last].register_forward_hook(keep)
    root.train(False).requires_grad_(True)
    value = read(case, case.run(model))
    (value * torch.randn(value.shape, generator=torch.Generator().manual_seed(6))).sum().backward()
    gradient = kept[0].grad
    assert gradient.shape[1] == case.tokens() + (P if case.last < DEPTH - 1 and root is not model else 0)
    if gradient.shape[1] > case.tokens():
        gradient = without_prompts(case, gradient)
    used = (gradient.abs().amax(-1) > 0).any(0)
    if used.all():
        return {"all"} if case.reads == ("all",) else {f"slot {i}" for i in range(case.prefix)} | {"patches"}
    names = {f"slot {i}" for i in range(case.prefix) if used[i]}
    patches = used[case.prefix :]
    return names | ({"patches"} if patches.all() else {"some patches"} if patches.any() else set())


@cases([case for case in HERE if case.pools])
@pytest.mark.parametrize("pooling", ["prompts", "patches", "prompts_and_patches"])
def test_pooling_writes_the_mean_into_token_0(case: Case, pooling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"slot 0", "all"} & set(case.reads)
    plain, model = prompted(case), prompted(case, pooling=pooling)
    last: list[torch.Tensor] = []
    inner: list[torch.Tensor] = []
    blocks = find_vision_transformer(model.base_model.model).blocks
    blocks[-1].register_forward_hook(lambda _, args, out: last.append(out[0] if isinstance(out, tuple) else out))
    reference = find_vision_transformer(plain.base_model.model).blocks[-1]
    original = type(reference).forward

    @wraps(original)
    def recorded(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The class's forward. Hooks see a block without prompts; this is its output as it is."""
        out = original(self, *args, **kwargs)
        if self is reference:
            inner.append(out[0] if isinstance(out, tuple) else out)
        return out

    monkeypatch.setattr(type(reference), "forward", recorded)
    with in_sequence(model):  # prompts among the tokens of the last block
        found = case.run(model)
    with in_sequence(plain):
        unpooled = case.run(plain)
    assert not torch.equal(read(case, found), read(case, unpooled))
    tokens, start = inner[0], case.prefix
    chosen = {"prompts": slice(start, start + P), "patches": slice(start + P, None)}.get(pooling, slice(start, None))
    assert torch.allclose(last[0][:, 0], tokens[:, chosen].mean(1), atol=1e-6)
    assert torch.equal(last[0][:, 1:], without_prompts(case, tokens)[:, 1:])


@cases([case for case in HERE if not case.pools])
def test_pooling_is_refused_where_token_0_is_not_read(case: Case) -> None:
    base = case.build()
    keys, trainable = list(base.state_dict()), [p.requires_grad for p in base.parameters()]
    with pytest.raises(ArchitectureError, match="pooling='prompts' has no effect here") as caught:
        get_peft_model(base, GatedPromptConfig(pooling="prompts"))
    reason = "no prefix token" if case.prefix == 0 else "global_pool" if case.family == "timm" else "patch tokens"
    assert reason in str(caught.value)
    assert (list(base.state_dict()), [p.requires_grad for p in base.parameters()]) == (keys, trainable)
