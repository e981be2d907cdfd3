"""Prompts as keys and values only give what prompts among the tokens give: outputs, gradients, and who may use it."""

import copy
import pickle

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model

import gated_prompt
from gated_prompt import GatedPromptConfig, GatedPromptError
from gated_prompt.tuner.architecture import find_vision_transformer
from gated_prompt.tuner.attention import AttentionRoute
from helpers.families import DEPTH, HERE, Case
from helpers.models import bank_of, images, vit
from test_families import P, prompted, read, trained

CLOSED, OPEN = -60.0, 0.3
WAYS = {
    "all closed": {"logits": [CLOSED] * 3},
    "closed up to block 1": {"logits": [CLOSED, CLOSED, OPEN]},
    "closed behind an open one": {"logits": [OPEN, CLOSED, OPEN]},
    "all open": {"logits": [OPEN] * 3},
    "no gates": {"gates": False},
    "from block 2": {"insert_at": 2, "logits": [CLOSED]},
    "deep": {"deep": True},
    "deep from block 1, dropout": {"deep": True, "insert_at": 1, "prompt_dropout": 0.5},
    "dropout": {"logits": [CLOSED, OPEN, CLOSED], "prompt_dropout": 0.5},
}


def make(case: Case, attention: str = "sdpa", logits: list[float] | None = None, **settings) -> PeftModel:
    model = prompted(case, attention=attention, **settings)
    if logits is not None:
        bank(model).gated_prompt_gate_logits["default"].data.copy_(torch.tensor(logits))
    return model


def bank(model: PeftModel):
    return bank_of(model)


def in_band(model: PeftModel) -> PeftModel:
    bank(model).fast_path = False
    return model


def tiny(logits: list[float] | None = None, **settings) -> PeftModel:
    model = get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=P, **settings)).eval()
    if logits is not None:
        bank(model).gated_prompt_gate_logits["default"].data.copy_(torch.tensor(logits))
    return model


def watch(model: PeftModel) -> list[int]:
    """Filled by forwards: the number of tokens that each block's MLP works on."""
    seen: list[int] = []
    for block in find_vision_transformer(model.base_model.model).blocks:
        mlp = [m for m in block.modules() if isinstance(m, torch.nn.Linear)][-1]
        mlp.register_forward_hook(lambda _m, args, _o: seen.append(args[0].shape[1]))
    return seen


@pytest.mark.parametrize("case", HERE, ids=lambda case: case.id)
@torch.no_grad()
def test_closed_gates_take_the_short_way_in_every_family(case: Case) -> None:
    model = make(case, logits=WAYS["closed up to block 1"]["logits"])
    routed = set(bank(model).routes) == set(range(DEPTH))
    found = read(case, case.run(model))
    assert bank(model).passage.passive == (frozenset({0, 1, 3}) if routed else frozenset())
    torch.testing.assert_close(found, read(case, case.run(in_band(model))), rtol=1e-4, atol=2e-5)


def test_which_families_have_no_short_way() -> None:
    """Those that do not ask transformers' `AttentionInterface`; transformers before 5.11 has more of them."""
    without = {case.family for case in HERE if not bank(make(case)).routes}
    assert "timm" in without
    assert not without & {"ViT", "DeiT", "ViT-MAE", "ViT-MSN", "DINOv2", "DINOv2 with registers", "DINOv3 ViT"}
    assert not without & {"I-JEPA", "CLIP", "SigLIP", "SigLIP 2"}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("way", WAYS)
def test_outputs_and_gradients_of_training(way: str, attention: str) -> None:
    case = next(case for case in HERE if case.id == "ViTForImageClassification")
    results = []
    for fast in (True, False):
        model = make(case, attention, **WAYS[way])
        bank(model).fast_path = fast
        torch.manual_seed(3)
        results.append((trained(case, model), bank(model).passage.passive))
    (found, passive), (wanted, none) = results
    assert passive
    assert not none
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert torch.allclose(found[name], wanted[name], rtol=1e-4, atol=1e-5), name
    if "logits" in WAYS[way]:
        rows = torch.tensor(WAYS[way]["logits"]) == CLOSED
        assert (found["gate_logits"][rows] == 0).all()
        assert wanted["gate_logits"][rows].abs().max() < 1e-20 if rows.any() else True


@pytest.mark.parametrize("pooling", [None, "prompts", "patches", "prompts_and_patches"])
@pytest.mark.parametrize("way", [*WAYS, "last closed"])
def test_float64(way: str, pooling: str | None) -> None:
    settings = WAYS.get(way, {"gated_blocks": [1, 3], "logits": [OPEN, CLOSED]})
    case = next(case for case in HERE if case.id == "ViTForImageClassification")
    results = []
    for fast in (True, False):
        model = make(case, pooling=pooling, **settings).double()
        bank(model).fast_path = fast
        pixels, loss = images().double(), torch.nn.functional.cross_entropy
        torch.manual_seed(3)
        logits = model.train()(pixel_values=pixels).logits
        loss(logits, torch.tensor([1, 2])).backward()
        results.append([logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
        read_at_the_end = pooling in ("prompts", "prompts_and_patches")
        some = way not in ("all open", "no gates") or not read_at_the_end
        assert bool(bank(model).passage.passive) == (fast and some)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


@torch.no_grad()
def test_how_many_tokens_each_block_works_on() -> None:
    n = 17
    for settings, wanted in (
        ({"logits": [CLOSED] * 3}, [n, n, n, n]),
        ({"logits": [CLOSED, OPEN, CLOSED]}, [n, n + P, n, n]),
        ({"logits": [OPEN] * 3}, [n + P, n + P, n + P, n]),
        ({"logits": [OPEN] * 3, "pooling": "prompts"}, [n + P] * 4),
        ({"deep": True}, [n] * 4),
        ({"deep": True, "pooling": "prompts_and_patches"}, [n, n, n, n + P]),
    ):
        model = tiny(**settings)
        seen = watch(model)
        model(images())
        assert seen == wanted, settings


def test_a_gate_closes_by_the_precision_it_works_and_learns_in() -> None:
    for dtype, logit, train, closed in (
        (torch.float32, -20.0, False, True),  # sigmoid(-20) = 2e-9, the paper's most closed start
        (torch.float32, -15.0, False, False),
        (torch.float32, -20.0, True, True),
        (torch.float32, -15.0, True, False),
        (torch.float64, -20.0, False, False),
        (torch.bfloat16, -10.0, False, True),
    ):
        model = tiny([logit] * 3).to(dtype).train(train)
        model(images().to(dtype))
        assert (0 in bank(model).passage.passive) == closed, (dtype, logit, train)
    model = tiny([-10.0] * 3).to(torch.bfloat16).train()
    bank_of(model).float()  # a gate in float32 still learns on a base in bfloat16
    model(images().to(torch.bfloat16))
    assert 0 not in bank(model).passage.passive


def test_a_gate_that_opens_moves_its_block() -> None:
    model = tiny([CLOSED] * 3).train()
    model(images())
    assert bank(model).passage.passive == {0, 1, 2, 3}
    bank(model).gated_prompt_gate_logits["default"].data[1] = -3.0
    model(images())
    assert bank(model).passage.passive == {0, 2, 3}


@torch.no_grad()
def test_a_tolerance_acts_in_eval_and_its_cost_is_told() -> None:
    model = tiny([-6.0, -2.0, -8.0], gate_tolerance=0.01)
    exact = tiny([-6.0, -2.0, -8.0])
    change = (model(images()).logits - exact(images()).logits).abs().max()
    assert bank(model).passage.passive == {0, 2, 3}
    assert 1e-6 < change < 0.1
    found = gated_prompt.pruning(exact, images(), 0.01)
    assert found.blocks == [0, 2, 3]
    assert found.change == pytest.approx(float(change))
    assert found.scale == pytest.approx(float(exact(images()).logits.abs().max()))
    assert gated_prompt.pruning(exact, images(), 0.0) == ([3], 0.0, found.scale)
    model.train()(images())
    assert 0 not in bank(model).passage.passive
    with pytest.raises(GatedPromptError, match="eval mode only"):
        gated_prompt.pruning(model, images(), 0.1)
    with pytest.raises(GatedPromptError, match=r"gate_tolerance is 1\.5"):
        gated_prompt.pruning(exact, images(), 1.5)
    with pytest.raises(GatedPromptError, match=r"gate_tolerance is -0\.1"):
        GatedPromptConfig(gate_tolerance=-0.1)


@torch.no_grad()
def test_keys_of_unchanged_prompts_are_computed_once() -> None:
    model = tiny([CLOSED] * 3)
    key = bank(model).routes[1].parts.key
    seen: list[int] = []
    key.register_forward_hook(lambda _m, args, _o: seen.append(args[0].shape[1]))
    first = model(images()).logits
    assert torch.equal(model(images()).logits, first)
    assert seen.count(P) == 1
    for change in (
        lambda: bank(model).gated_prompt_tokens["default"].data.add_(0.5),  # behind the version counter's back
        lambda: key.weight.mul_(1.5),
        lambda: model.train().eval(),
    ):
        change()
        seen.clear()
        found = model(images()).logits
        assert seen.count(P) == 1
        assert torch.equal(model(images()).logits, found)
        assert seen.count(P) == 1
        bank(model).fast_path = False
        torch.testing.assert_close(found, model(images()).logits, rtol=1e-4, atol=1e-5)
        bank(model).fast_path = True
    with torch.enable_grad():
        seen.clear()
        model(images())
        assert seen.count(P) == 1  # with gradients nothing is kept


@torch.no_grad()
def test_nothing_is_kept_above_lora() -> None:
    base = inject_adapter_in_model(LoraConfig(target_modules=["k_proj", "key"], init_lora_weights=False), vit())
    model = get_peft_model(base, GatedPromptConfig(num_virtual_tokens=P, gate_init=CLOSED)).eval()
    model(images())
    assert bank(model).passage.passive == {0, 1, 2, 3}
    assert bank(model).kept is None


@torch.no_grad()
def test_attention_maps_keep_their_rows_for_the_prompts() -> None:
    base = vit()
    base.set_attn_implementation("eager")
    model = get_peft_model(base, GatedPromptConfig(num_virtual_tokens=P, gate_init=CLOSED)).eval()
    short = model(images()).logits
    assert bank(model).passage.passive == {0, 1, 2, 3}
    output = model(images(), output_attentions=True)
    assert [tuple(a.shape) for a in output.attentions] == [(2, 4, 17 + P, 17 + P)] * 4
    torch.testing.assert_close(output.logits, short, rtol=1e-4, atol=1e-5)
    model(images())
    assert bank(model).passage.passive == {0, 1, 2, 3}


@torch.no_grad()
def test_the_implementation_of_the_moment_is_used_and_the_config_comes_back() -> None:
    base = vit()
    config = base.config
    model = get_peft_model(base, GatedPromptConfig(num_virtual_tokens=P, gate_init=CLOSED)).eval()
    routes = [m.config for m in base.modules() if isinstance(getattr(m, "config", None), AttentionRoute)]
    assert len(routes) == 4
    used: list[str] = []
    for implementation in ("sdpa", "eager"):
        base.set_attn_implementation(implementation)
        used.append(routes[0].function.__name__)
        model(images())
    assert used == ["sdpa_attention_forward", "eager_attention_forward"]
    model.unload()
    assert all(m.config is config for m in base.modules() if hasattr(m, "config"))


def test_copies_work_on_their_own() -> None:
    model = tiny([CLOSED] * 3)
    wanted = model(images()).logits
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(images()).logits, wanted)
        bank(twin).gated_prompt_tokens["default"].data.zero_()
        assert not torch.equal(twin(images()).logits, wanted)
        assert torch.equal(model(images()).logits, wanted)


@torch.no_grad()
def test_adapters_with_other_first_blocks_do_not_mix() -> None:
    model = tiny([CLOSED] * 3)
    torch.manual_seed(8)
    model.add_adapter("late", GatedPromptConfig(num_virtual_tokens=2, insert_at=2, gate_init=CLOSED))
    model.eval()
    alone = {}
    for name in ("default", "late"):
        model.set_adapter(name)
        alone[name] = model(images()).logits
    mixed = model(images(), adapter_names=["late", "default"]).logits
    torch.testing.assert_close(mixed, torch.stack((alone["late"][0], alone["default"][1])), rtol=1e-4, atol=1e-5)


def test_recomputing_a_block_without_its_hooks_is_an_error() -> None:
    """As a checkpoint around `forward` does; transformers' own is seen and keeps the prompts among the tokens."""
    from torch.utils.checkpoint import checkpoint

    model = tiny(deep=True).train()
    for block in find_vision_transformer(model.base_model.model).blocks:
        block.forward = lambda *args, forward=block.forward, **kw: checkpoint(
            forward, *args, use_reentrant=False, **kw
        )
    with pytest.raises(GatedPromptError, match="gradient_checkpointing_enable"):
        model(images()).logits.sum().backward()
    model = tiny(deep=True).train()
    model.base_model.model.gradient_checkpointing_enable()
    model(images()).logits.sum().backward()
    assert not bank(model).passage.passive
