"""Zero-start prompts: the adapted model begins as its base; in every family they read what the equation says."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

import gated_prompt
from gated_prompt import (
    AdapterMismatchError,
    ArchitectureError,
    CheckError,
    ConfigError,
    DamagedAdapterError,
    GatedPromptConfig,
    GatedPromptError,
    UnsupportedOperationError,
    find_vision_transformer,
)
from gated_prompt.architecture import AttentionParts
from gated_prompt.inspect.attention_maps import prompt_attention
from helpers.families import DEPTH, HERE, VERSION, Case
from helpers.families_more import MORE, More
from helpers.golden_cases import Case as Golden
from helpers.models import bank_of, images, vit
from helpers.numpy_reference import zero_start_logits
from helpers.prompted import P, prompted, read, tensors, trained
from helpers.zero_start_by_hand import zero_start_by_hand

HEADS = 4
ZERO = {"deep": True, "zero_start": True}


def fits(case: Case | More) -> bool:
    return all(parts.can_be_passive for parts in find_vision_transformer(case.build()).attentions)


FIT = [case for case in HERE if fits(case)]
MORE_HERE = [case for case in MORE if case.here]


def cases(chosen: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", chosen, ids=[case.id for case in chosen])


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def tuned(seed: int | None = 1, base: nn.Module | None = None, **settings: object) -> PeftModel:
    """A ViT with zero-start prompts; `seed` None: as they start, otherwise with random prompts and gates."""
    settings = {"num_virtual_tokens": 3, "prompt_dropout": 0.0, **ZERO, **settings}
    model = get_peft_model(vit() if base is None else base, GatedPromptConfig(**settings)).eval()
    if seed is not None:
        randomise(model, seed)
    return model


def randomise(model: PeftModel, seed: int, name: str = "default") -> None:
    noise, bank = torch.Generator().manual_seed(seed), bank_of(model)
    for tensors_of in (bank.gated_prompt_tokens, bank.gated_prompt_head_gates, bank.gated_prompt_temperatures):
        if name in tensors_of:
            tensors_of[name].data.uniform_(0.5, 1.5, generator=noise)


def logits(model: nn.Module, **kwargs: object) -> torch.Tensor:
    return model(pixel_values=images(), **kwargs).logits


def parameters(model: PeftModel) -> tuple[torch.Tensor, torch.Tensor]:
    bank = bank_of(model)
    return bank.gated_prompt_tokens["default"], bank.gated_prompt_head_gates["default"]


def test_most_families_fit() -> None:
    families = {case.family for case in FIT}
    assert families >= {"ViT", "DeiT", "ViT-MAE", "ViT-MSN", "DINOv2", "DINOv2 with registers", "DINOv3"}
    assert families >= {"I-JEPA", "CLIP", "SigLIP", "SigLIP 2"}


@cases(FIT)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_it_begins_as_the_base(case: Case, attention: str) -> None:
    base = case.build(attention).requires_grad_(False)
    wanted = tensors(case.run(base))
    model = get_peft_model(case.build(attention), GatedPromptConfig(modules_to_save=[], **ZERO)).eval()
    found = tensors(case.run(model))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    if case.last:
        parameters(model)[1][0] = 1.0
        assert not torch.equal(read(case, case.run(model)), read(case, case.run(base)))


@cases(FIT)
def test_every_family_against_the_independent_loop(case: Case) -> None:
    model = prompted(case, insert_at=1, **ZERO)
    found, base = case.run(model), model.base_model.model
    tokens, gates = parameters(model)
    blocks = find_vision_transformer(base).blocks[1:]
    temperatures = gated_prompt.temperatures(model)
    with model.disable_adapter():
        plain = case.run(model)
        with zero_start_by_hand(blocks, tokens, gates, temperatures):
            wanted = case.run(model)
    largest = read(case, wanted).abs().max()
    torch.testing.assert_close(read(case, found), read(case, wanted), rtol=1e-4, atol=2e-5 * max(1.0, float(largest)))
    assert not torch.allclose(read(case, found), read(case, plain), atol=1e-4)
    inputs = case.inputs()
    gated_prompt.check(model, *(() if case.config else inputs.values()), **(inputs if case.config else {}))


@pytest.mark.parametrize("case", MORE_HERE, ids=[case.id for case in MORE_HERE])
def test_more_families_pass_the_check_or_are_refused(case: More) -> None:
    config = GatedPromptConfig(num_virtual_tokens=P, prompt_dropout=0.0, **ZERO)
    if not fits(case):
        assert case.family not in ("MetaCLIP 2", "PaliGemma", "InternVL", "ViTPose")
        with pytest.raises(ArchitectureError, match="zero_start=True needs an attention that uses transformers"):
            get_peft_model(case.build(), config)
        return
    if case.family == "LLaVA-OneVision" and VERSION < (5, 0):
        pytest.skip("transformers 4 reads hidden states that `check` cannot replace, with prompts of every kind")
    model = get_peft_model(case.build(), config).eval()
    noise = torch.Generator().manual_seed(5)
    for parameter in parameters(model):
        parameter.data = torch.randn(parameter.shape, generator=noise)
    gated_prompt.check(model, **case.inputs())


@pytest.mark.parametrize("read_from", [3, 2])
@pytest.mark.parametrize("insert_at", [0, 2])
def test_the_numpy_reference(insert_at: int, read_from: int) -> None:
    case = Golden("moco_gated_temp", torch.float64)
    config = GatedPromptConfig(
        num_virtual_tokens=5, insert_at=insert_at, read_from=read_from, prompt_dropout=0.0, **ZERO
    )
    model = get_peft_model(case.base(), config).eval()
    bank, generator = bank_of(model), torch.Generator().manual_seed(3)
    tokens, gates = parameters(model)
    tokens.data = torch.randn(tokens.shape, generator=generator, dtype=torch.float64)
    gates.data = torch.randn(gates.shape, generator=generator, dtype=torch.float64)
    count = read_from + 1 - insert_at
    temperatures = torch.linspace(0.5, 2.5, count, dtype=torch.float64)
    bank.gated_prompt_temperatures["default"].data.copy_(temperatures)
    pixels, _ = case.batch(1)
    state = {k: v.numpy() for k, v in case.state.items()}
    apart = {insert_at + i: (tokens[i].detach().numpy(), np.tanh(gates[i].detach().numpy())) for i in range(count)}
    taus = {insert_at + i: float(tau) for i, tau in enumerate(temperatures)}
    wanted = [zero_start_logits(image, state, apart, taus, read_from=read_from) for image in pixels.numpy()]
    np.testing.assert_allclose(model(pixels).logits.numpy(), wanted, rtol=0, atol=1e-10)


def test_no_block_works_on_more_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model, hooked, seen = tuned(), [], []
    inside = set()
    for block in find_vision_transformer(model.base_model.model).blocks:
        block.register_forward_hook(lambda _m, args, _o: hooked.append(args[0].shape[1]))
        for module in block.modules():
            if isinstance(module, nn.Linear):
                inside.add(module)
                module.register_forward_hook(lambda _m, args, _o: hooked.append(args[0].shape[-2]))
    original = nn.Linear.forward

    def recorded(self: nn.Linear, tokens: torch.Tensor) -> torch.Tensor:
        if self in inside:
            seen.append(tokens.shape[-2])
        return original(self, tokens)

    monkeypatch.setattr(nn.Linear, "forward", recorded)
    logits(model)
    assert set(hooked) == {17}  # hooks of users see the tokens of images alone
    assert set(seen) == {17, 3}
    assert seen.count(3) == 2 * DEPTH  # keys and values of the prompts, once for all images


@cases(FIT)
def test_gradients_at_the_start_and_later(case: Case) -> None:
    fresh = prompted(case, **ZERO)
    parameters(fresh)[1].zero_()
    gradients = trained(case, fresh)
    assert (gradients["tokens"] == 0).all()
    assert (gradients["head_gates"][: case.last + 1] != 0).all()
    gradients = trained(case, prompted(case, **ZERO))
    assert gradients["tokens"].shape == (DEPTH, P, gradients["tokens"].shape[-1])
    assert (gradients["tokens"][: case.last + 1].abs().sum(-1) > 0).all()
    assert (gradients["head_gates"][: case.last + 1] != 0).all()
    assert (gradients["temperatures"][: case.last + 1] != 0).all()


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "saved-tensors"])
def test_activation_checkpointing_gives_the_same_gradients(reentrant: bool) -> None:
    case = next(case for case in FIT if case.id == "ViTForImageClassification")
    wanted = trained(case, prompted(case, **ZERO))
    model = prompted(case, **ZERO)
    model.base_model.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    found = trained(case, model)
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-5)


def test_disabled_and_unloaded_are_the_base() -> None:
    base = vit()
    wanted, model = logits(base), None
    model = tuned(base=base)
    assert not torch.equal(logits(model), wanted)
    with model.disable_adapter():
        assert torch.equal(logits(model), wanted)
    assert torch.equal(logits(model.unload()), wanted)


def test_dropout_takes_parts_of_the_prompts_for_each_image() -> None:
    model = tuned(prompt_dropout=0.5)
    wanted = logits(model)
    model.train()
    torch.manual_seed(0)
    once, again = logits(model), logits(model)
    assert not torch.allclose(once, again)
    assert not torch.allclose(once, wanted)


def test_low_rank_and_pooled_patches_and_a_read_block() -> None:
    model = tuned(prompt_rank=2, pooling="patches", insert_at=1, read_from=2)
    bank = bank_of(model)
    for factors in (bank.gated_prompt_tokens_a, bank.gated_prompt_tokens_b):
        factors["default"].data.normal_(generator=torch.Generator().manual_seed(2))
    gated_prompt.check(model, pixel_values=images())
    assert parameter_count(model) == 2 * (3 * 2 + 2 * 32) + 2 * HEADS + 2


def parameter_count(model: PeftModel) -> int:
    return sum(p.numel() for p in bank_of(model).parameters())


def test_prompts_start_from_tokens_of_images() -> None:
    model = tuned(None)
    wanted = logits(model)
    seen: list[torch.Tensor] = []
    blocks = find_vision_transformer(model.base_model.model).blocks
    handles = [block.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for block in blocks]
    pixels = images(4)
    with model.disable_adapter():
        model(pixel_values=pixels)
    for handle in handles:
        handle.remove()
    gated_prompt.initialize_prompts(model, [pixels])
    for prompts, entered in zip(parameters(model)[0], seen, strict=True):
        patches = entered[:, 1:].flatten(0, 1)
        assert all((patches == prompt).all(1).any() for prompt in prompts)
    assert torch.equal(logits(model), wanted)


# Files.


@cases(FIT)
def test_save_load_save(case: Case, tmp_path: Path) -> None:
    model = prompted(case, **ZERO)
    model.save_pretrained(tmp_path / "one")
    loaded = PeftModel.from_pretrained(case.build(), tmp_path / "one").eval()
    loaded.save_pretrained(tmp_path / "two")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    assert torch.equal(read(case, case.run(loaded)), read(case, case.run(model)))
    assert loaded.peft_config["default"].num_heads == HEADS


def edited(folder: Path, old: str, new: str) -> None:
    path = folder / "adapter_config.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_another_number_of_heads_is_refused(tmp_path: Path) -> None:
    gated_prompt.save(tuned(), tmp_path)
    gated_prompt.load(vit(), tmp_path)
    base = vit(num_attention_heads=2)
    with pytest.raises(AdapterMismatchError, match="attention heads: adapter 4, base 2"):
        gated_prompt.load(base, tmp_path)
    assert not gated_prompt.has_prompts(base)
    edited(tmp_path, '"num_heads": 4', '"num_heads": 2')
    with pytest.raises(DamagedAdapterError, match=r"head_gates in .* has shape \(4, 4\)"):
        gated_prompt.load(vit(), tmp_path)
    edited(tmp_path, '"num_heads": 2', '"num_heads": null')
    with pytest.raises(DamagedAdapterError, match="lacks num_heads, which saving records"):
        gated_prompt.load(vit(), tmp_path)


def test_a_file_without_its_setting_is_refused(tmp_path: Path) -> None:
    gated_prompt.save(tuned(), tmp_path)
    edited(tmp_path, '"zero_start": true', '"zero_start": false')
    with pytest.raises(DamagedAdapterError, match="head_gates"):
        gated_prompt.load(vit(), tmp_path)


# Several adapters.


def test_mixed_batches() -> None:
    names = ["a", "zero", "__base__", "deep", "other", "zero"]
    model = get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=3), adapter_name="a")
    model.add_adapter("deep", GatedPromptConfig(num_virtual_tokens=3, deep=True))
    for name in ("zero", "other"):
        model.add_adapter(name, GatedPromptConfig(num_virtual_tokens=3, **ZERO))
    for seed, name in enumerate(("a", "deep", "zero", "other")):
        randomise(model, seed, name)
        model.base_model.model.classifier.modules_to_save[name].weight.data.normal_(0, 0.3)
    model.eval()
    found, passes = model(pixel_values=images(6), adapter_names=names).logits, []
    for row, name in enumerate(names):
        if name == "__base__":
            with model.disable_adapter():
                wanted = model(pixel_values=images(6)[row : row + 1]).logits
        else:
            model.set_adapter(name)
            wanted = model(pixel_values=images(6)[row : row + 1]).logits
        torch.testing.assert_close(found[row : row + 1], wanted, rtol=1e-5, atol=1e-5)
    block = find_vision_transformer(model.base_model.model).blocks[0]
    block.register_forward_hook(lambda _, args, output: passes.append(len(args[0])))
    model(pixel_values=images(6), adapter_names=names)
    assert passes == [1, 3, 1, 1]  # both zero-start adapters in one pass


# What is refused.


def test_settings_that_contradict_it() -> None:
    with pytest.raises(ConfigError, match="zero_start=True needs deep=True"):
        GatedPromptConfig(zero_start=True)
    for pooling in ("prompts", "prompts_and_patches"):
        with pytest.raises(ConfigError, match=f"zero_start=True contradicts pooling='{pooling}'"):
            GatedPromptConfig(pooling=pooling, **ZERO)
    GatedPromptConfig(pooling="patches", **ZERO)


@cases([case for case in HERE if case not in FIT])
def test_attention_out_of_reach_is_refused(case: Case) -> None:
    base = case.build()
    keys = list(base.state_dict())
    with pytest.raises(ArchitectureError, match="zero_start=True needs an attention that uses transformers"):
        get_peft_model(base, GatedPromptConfig(**ZERO))
    assert list(base.state_dict()) == keys


def test_a_number_of_heads_that_its_module_does_not_name_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AttentionParts, "num_heads", 2)
    with pytest.raises(ArchitectureError, match=r"block 0 attends with 4 heads .* gates for 2"):
        logits(tuned())


def test_attention_maps_are_refused() -> None:
    model = tuned()
    with pytest.raises(UnsupportedOperationError, match="zero-start prompts have keys and values but no queries"):
        prompt_attention(model, images())
    base = vit()
    base.set_attn_implementation("eager")
    output = tuned(base=base)(images(), output_attentions=True)
    assert [tuple(weights.shape) for weights in output.attentions] == [(2, HEADS, 17, 17)] * DEPTH
    torch.testing.assert_close(output.logits, logits(model), rtol=1e-4, atol=1e-5)


# What reads it.


def test_readouts_and_card_and_groups(tmp_path: Path) -> None:
    model = tuned(insert_at=1)
    gates = gated_prompt.head_gates(model)
    assert torch.equal(gates, parameters(model)[1].tanh())
    assert gates.shape == (3, HEADS)
    assert gated_prompt.gates(model).shape == gated_prompt.selection_ratios(model).shape == (0,)
    assert gated_prompt.head_gates(prompted(FIT[0])).shape == (0, 0)
    with pytest.raises(GatedPromptError, match="carries no gated prompts"):
        gated_prompt.head_gates(vit())
    gated_prompt.save(model, tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "Zero-start visual prompts" in card
    assert f"| 2 | {float(gates[1].abs().mean()):.4g} | {float(gated_prompt.temperatures(model)[1]):.4g} |" in card
    groups = {
        group["name"]: group["params"] for group in gated_prompt.parameter_groups(model, lr=0.1, gates={"lr": 1})
    }
    assert [p.shape for p in groups["gates"]] == [(3, HEADS)]
    assert gated_prompt.prune(model, 0.5) == [1, 2, 3]


def test_check_passes_a_fresh_adapter_and_finds_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    gated_prompt.check(tuned(None), pixel_values=images())
    model = tuned()
    gated_prompt.check(model, pixel_values=images())
    right = AttentionParts.keys_and_values
    monkeypatch.setattr(AttentionParts, "keys_and_values", lambda *args: [2 * part for part in right(*args)])
    with pytest.raises(CheckError, match="differs from the blocks run by hand"):
        gated_prompt.check(model, pixel_values=images())
    monkeypatch.undo()
    plain = bank_of(model).gated_prompt_head_gates["default"]  # without tanh
    monkeypatch.setattr("gated_prompt.tuner.zero_start.head_gates", lambda forward, index: plain[index : index + 1])
    with pytest.raises(CheckError, match="differs from the blocks run by hand"):
        gated_prompt.check(model, pixel_values=images())
