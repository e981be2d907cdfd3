"""Passive blocks give the same outputs and gradients as prompts in the token sequence; which blocks can be passive."""

import copy
import pickle

import pytest
import torch
from peft import PeftModel, get_peft_model

import gated_prompt
from gated_prompt import GatedPromptConfig, GatedPromptError, find_vision_transformer
from gated_prompt.tuner.attention import AttentionRoute
from helpers.families import HERE, Case
from helpers.models import bank_of, images, in_sequence, vit
from helpers.prompted import P, prompted, read, trained

CLOSED, OPEN = -200.0, 0.3
WAYS = {
    "gated": {"logits": [OPEN] * 3},
    "no gates": {"gates": False},
    "a gate at the end": {"gated_blocks": [1, 3], "logits": [OPEN, OPEN]},
    "from block 2": {"insert_at": 2, "logits": [OPEN]},
    "from the last block": {"insert_at": 3, "gates": False},
    "deep": {"deep": True},
    "deep from block 1, dropout": {"deep": True, "insert_at": 1, "prompt_dropout": 0.5},
    "dropout": {"logits": [OPEN] * 3, "prompt_dropout": 0.5},
}
PRUNED = {
    "all": ([CLOSED] * 3, [0, 1, 2, 3], [17] * 4),
    "up to block 1": ([CLOSED, CLOSED, OPEN], [0, 1, 3], [17, 17, 17 + P, 17]),
    "behind an open one": ([OPEN, CLOSED, OPEN], [1, 3], [17 + P, 17, 17 + P, 17]),
    "none": ([OPEN] * 3, [3], [17 + P] * 3 + [17]),
}


def make(case: Case, attention: str = "sdpa", logits: list[float] | None = None, **settings) -> PeftModel:
    model = prompted(case, attention=attention, **settings)
    if logits is not None:
        bank(model).gated_prompt_gate_logits["default"].data.copy_(torch.tensor(logits))
    return model


def bank(model: PeftModel):
    return bank_of(model)


def tiny(logits: list[float] | None = None, **settings) -> PeftModel:
    model = get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=P, **settings)).eval()
    if logits is not None:
        bank(model).gated_prompt_gate_logits["default"].data.copy_(torch.tensor(logits))
    return model


def watch(model: PeftModel) -> list[int]:
    """A list that forwards fill with the number of tokens in each block's MLP."""
    seen: list[int] = []
    for block in find_vision_transformer(model.base_model.model).blocks:
        mlp = [m for m in block.modules() if isinstance(m, torch.nn.Linear)][-1]
        mlp.register_forward_hook(lambda _m, args, _o: seen.append(args[0].shape[1]))
    return seen


def adapter(model: PeftModel):
    return bank(model).adapters_in_use[0]


@pytest.mark.parametrize("case", HERE, ids=lambda case: case.id)
@torch.no_grad()
def test_pruned_equals_prompts_in_the_sequence_in_every_family(case: Case) -> None:
    model = make(case, logits=PRUNED["up to block 1"][0])
    exact = read(case, case.run(model))
    passive = gated_prompt.prune(model, 0.0)
    assert passive == [block for block in (0, 1, 3) if block in bank(model).can_be_passive]
    found = read(case, case.run(model))
    with in_sequence(model):
        wanted = read(case, case.run(model))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=2e-5)
    gated_prompt.prune(model, None)
    assert torch.equal(read(case, case.run(model)), exact)


def test_which_families_have_no_short_way() -> None:
    """Families without transformers' `AttentionInterface`; before transformers 5.11 there are more of them."""
    without = {case.family for case in HERE if not bank(make(case)).can_be_passive}
    assert "timm" in without
    assert not without & {"ViT", "DeiT", "ViT-MAE", "ViT-MSN", "DINOv2", "DINOv2 with registers", "DINOv3"}
    assert not without & {"I-JEPA", "CLIP", "SigLIP", "SigLIP 2"}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("way", WAYS)
def test_outputs_and_gradients_of_training(way: str, attention: str) -> None:
    case = next(case for case in HERE if case.id == "ViTForImageClassification")
    model = make(case, attention, **WAYS[way])
    torch.manual_seed(3)
    found = trained(case, model)
    model = make(case, attention, **WAYS[way])
    torch.manual_seed(3)
    with in_sequence(model):
        wanted = trained(case, model)
    assert any(step.passive for step in adapter(model).training)
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert torch.allclose(found[name], wanted[name], rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("pooling", [None, "prompts", "patches", "prompts_and_patches"])
@pytest.mark.parametrize("way", WAYS)
def test_float64(way: str, pooling: str | None) -> None:
    case = next(case for case in HERE if case.id == "ViTForImageClassification")
    results = []
    for plain in (False, True):
        model = make(case, pooling=pooling, **WAYS[way]).double()
        pixels, loss = images().double(), torch.nn.functional.cross_entropy
        torch.manual_seed(3)
        with in_sequence(model) if plain else torch.enable_grad():
            logits = model.train()(pixel_values=pixels).logits
            loss(logits, torch.tensor([1, 2])).backward()
        results.append([logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
        read_at_the_end = pooling in ("prompts", "prompts_and_patches")
        assert adapter(model).training[-1].passive == (not read_at_the_end)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("pooling", [None, "prompts", "patches", "prompts_and_patches"])
@pytest.mark.parametrize("which", PRUNED)
@torch.no_grad()
def test_pruned_float64(which: str, pooling: str | None) -> None:
    model = tiny(PRUNED[which][0], pooling=pooling).double()
    wanted = model(images().double()).logits
    assert gated_prompt.prune(model, 1e-12) == [b for b in PRUNED[which][1] if b < 3 or "prompts" not in str(pooling)]
    torch.testing.assert_close(model(images().double()).logits, wanted, rtol=0, atol=1e-11)


@torch.no_grad()
def test_a_closed_gate_at_the_end_and_prompts_that_are_pooled() -> None:
    model = tiny([OPEN, CLOSED], gated_blocks=[1, 3], pooling="prompts").double()
    wanted = model(images().double()).logits
    assert gated_prompt.prune(model, 1e-12) == [3]
    torch.testing.assert_close(model(images().double()).logits, wanted, rtol=0, atol=1e-11)


@torch.no_grad()
def test_how_many_tokens_each_block_works_on() -> None:
    n = 17
    for settings, wanted in (
        ({}, [n + P, n + P, n + P, n]),
        ({"pooling": "prompts"}, [n + P] * 4),
        ({"deep": True}, [n] * 4),
        ({"deep": True, "pooling": "prompts_and_patches"}, [n, n, n, n + P]),
        ({"deep": True, "insert_at": 2}, [n] * 4),
    ):
        model = tiny(**settings)
        seen = watch(model)
        model(images())
        assert seen == wanted, settings
    for logits, passive, wanted in PRUNED.values():
        model = tiny(logits)
        assert gated_prompt.prune(model, 0.0) == passive
        seen = watch(model)
        model(images())
        assert seen == wanted


def test_training_uses_every_gate() -> None:
    model = tiny([-6.0] * 3)
    gated_prompt.prune(model, 0.01)
    seen = watch(model.train())
    model(images()).logits.sum().backward()
    assert seen == [17 + P] * 3 + [17]
    assert (bank(model).gated_prompt_gate_logits["default"].grad != 0).all()
    seen.clear()
    with torch.no_grad():
        model.eval()(images())
    assert seen == [17] * 4


@torch.no_grad()
def test_a_tolerance_and_the_report_of_its_cost() -> None:
    model, exact = tiny([-6.0, -2.0, -8.0]), tiny([-6.0, -2.0, -8.0])
    assert gated_prompt.prune(model, 0.01) == [0, 2, 3]
    change = (model(images()).logits - exact(images()).logits).abs().max()
    assert 1e-6 < change < 0.1
    found = gated_prompt.pruning(exact, images(), 0.01)
    assert found.blocks == [0, 2, 3]
    assert found.change == pytest.approx(float(change))
    assert found.scale == pytest.approx(float(exact(images()).logits.abs().max()))
    assert gated_prompt.pruning(exact, images(), 0.0) == ([3], 0.0, found.scale)
    assert gated_prompt.pruning(model, images(), 0.01) == found  # whatever is pruned now
    assert gated_prompt.prune(model, None) == [3]
    assert torch.equal(model(images()).logits, exact(images()).logits)


def test_prune_refusals_and_hard_gates() -> None:
    model = tiny([-6.0, -2.0, -8.0])
    for wrong in (1.5, -0.1, float("nan")):
        with pytest.raises(GatedPromptError, match="gate_tolerance is"):
            gated_prompt.prune(model, wrong)
    with pytest.raises(GatedPromptError, match=r"no adapter 'b' here. Choose from: default"):
        gated_prompt.prune(model, 0.1, "b")
    with pytest.raises(GatedPromptError, match="eval mode only"):
        gated_prompt.pruning(model.train(), images(), 0.1)
    assert gated_prompt.prune(tiny([-0.1, 0.1, -3.0], hard_gates=True), 0.0) == [0, 2, 3]
    assert gated_prompt.prune(tiny(deep=True), 0.5) == [0, 1, 2, 3]
    assert gated_prompt.prune(tiny(gates=False), 0.5) == [3]


@torch.no_grad()
def test_another_adapter_is_pruned_by_its_name_and_loading_takes_it_back(tmp_path) -> None:
    model = tiny([OPEN] * 3)
    model.add_adapter("b", GatedPromptConfig(num_virtual_tokens=P, gate_init=CLOSED))
    model.eval().save_pretrained(tmp_path)
    assert gated_prompt.prune(model, 0.0, "b") == [0, 1, 2, 3]
    assert adapter(model).passive_blocks == [3]
    model.load_adapter(tmp_path / "b", "b")
    assert bank(model).adapters["b"].passive_blocks == [3]


@torch.no_grad()
def test_attention_maps_keep_their_rows_for_the_prompts() -> None:
    base = vit()
    base.set_attn_implementation("eager")
    model = get_peft_model(base, GatedPromptConfig(num_virtual_tokens=P, deep=True)).eval()
    short, seen = model(images()).logits, watch(model)
    output = model(images(), output_attentions=True)
    assert [tuple(a.shape) for a in output.attentions] == [(2, 4, 17 + P, 17 + P)] * 4
    torch.testing.assert_close(output.logits, short, rtol=1e-4, atol=1e-5)
    model(images())
    assert seen == [17 + P] * 4 + [17] * 4


@torch.no_grad()
def test_the_implementation_of_the_moment_is_used_and_the_config_comes_back() -> None:
    base = vit()
    config = base.config
    model = get_peft_model(base, GatedPromptConfig(num_virtual_tokens=P, deep=True)).eval()
    routes = [m.config for m in base.modules() if isinstance(getattr(m, "config", None), AttentionRoute)]
    assert len(routes) == 4
    used: list[str] = []
    for implementation in ("sdpa", "eager"):
        base.set_attn_implementation(implementation)
        used.append(routes[0].parts.function(routes[0].config).__name__)
        model(images())
    assert used == ["sdpa_attention_forward", "eager_attention_forward"]
    model.unload()
    assert all(m.config is config for m in base.modules() if hasattr(m, "config"))


def test_copies_work_on_their_own() -> None:
    model = tiny(deep=True)
    wanted = model(images()).logits
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(images()).logits, wanted)
        bank(twin).gated_prompt_tokens["default"].data.zero_()
        assert not torch.equal(twin(images()).logits, wanted)
        assert torch.equal(model(images()).logits, wanted)


@torch.no_grad()
def test_adapters_with_other_first_blocks_do_not_mix() -> None:
    model = tiny([CLOSED] * 3)
    gated_prompt.prune(model, 0.0)
    torch.manual_seed(8)
    model.add_adapter("late", GatedPromptConfig(num_virtual_tokens=2, insert_at=2, gate_init=CLOSED))
    model.eval()
    alone = {}
    for name in ("default", "late"):
        model.set_adapter(name)
        alone[name] = model(images()).logits
    mixed = model(images(), adapter_names=["late", "default"]).logits
    torch.testing.assert_close(mixed, torch.stack((alone["late"][0], alone["default"][1])), rtol=1e-4, atol=1e-5)


def test_blocks_that_are_computed_again_without_their_hooks() -> None:
    """As a checkpoint around `forward` does. transformers' own checkpointing is detected and keeps prompts in the
    sequence."""
    from torch.utils.checkpoint import checkpoint

    def gradient(wrapped: bool, **settings) -> torch.Tensor:
        torch.manual_seed(0)
        model = tiny(**settings).train()
        for block in find_vision_transformer(model.base_model.model).blocks if wrapped else ():
            block.forward = lambda *args, forward=block.forward, **kw: checkpoint(
                forward, *args, use_reentrant=False, **kw
            )
        torch.manual_seed(1)
        model(images()).logits.sum().backward()
        return bank(model).gated_prompt_tokens["default"].grad

    torch.testing.assert_close(gradient(True, deep=True), gradient(False, deep=True))
    torch.testing.assert_close(gradient(True), gradient(False))
    model = tiny().train()
    model.base_model.model.gradient_checkpointing_enable()
    seen = watch(model)
    model(images()).logits.sum().backward()
    assert set(seen) == {17 + P}
