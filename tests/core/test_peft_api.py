"""What PEFT users call, on ViT and DINOv2."""

import pytest
import torch
from peft import AutoPeftModel, PeftModel, get_peft_model

import gated_prompt
from gated_prompt import GatedPromptConfig, GatedPromptError, UnsupportedOperationError
from helpers.models import bank_of, dinov2, images, vit

BASES = {"vit": vit, "dinov2": dinov2}
HEAD = {"vit": 5 * 32 + 5, "dinov2": 5 * 64 + 5}


@pytest.fixture(params=BASES)
def family(request) -> str:
    return request.param


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(images()).logits


@pytest.mark.parametrize(
    ("settings", "prompts", "scalars"),
    [
        ({}, 7 * 32, 3 + 4),
        ({"insert_at": 1}, 7 * 32, 2 + 3),
        ({"gated_blocks": [0, 3]}, 7 * 32, 2 + 4),
        ({"gates": False, "temperature": False}, 7 * 32, 0),
        ({"deep": True, "temperature": False}, 4 * 7 * 32, 0),
        ({"deep": True, "insert_at": 2}, 2 * 7 * 32, 2),
    ],
)
def test_trainable_parameters_are_the_closed_form(family, settings, prompts, scalars, capsys) -> None:
    model = get_peft_model(BASES[family](), GatedPromptConfig(num_virtual_tokens=7, **settings))
    model.print_trainable_parameters()
    wanted = prompts + scalars + HEAD[family]
    assert f"trainable params: {wanted:,} " in capsys.readouterr().out.replace(" ||", " ")
    assert model.get_nb_trainable_parameters()[0] == wanted
    no_head = get_peft_model(BASES[family](), GatedPromptConfig(num_virtual_tokens=7, modules_to_save=[], **settings))
    assert no_head.get_nb_trainable_parameters()[0] == prompts + scalars


def test_training_changes_the_adapter_and_nothing_else(family) -> None:
    model = get_peft_model(BASES[family](), GatedPromptConfig(num_virtual_tokens=4, gate_init=0.0)).train()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    torch.nn.functional.cross_entropy(model(images(4)).logits, torch.tensor([0, 1, 2, 3])).backward()
    optimizer.step()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert {n.removeprefix("base_model.model.") for n in changed} == {
        "gated_prompt.gated_prompt_tokens.default",
        "gated_prompt.gated_prompt_gate_logits.default",
        "gated_prompt.gated_prompt_temperatures.default",
        "classifier.modules_to_save.default.weight",
        "classifier.modules_to_save.default.bias",
    }


def test_file_keys_hold_no_backbone_path(family, tmp_path) -> None:
    from safetensors.torch import load_file

    get_peft_model(BASES[family](), GatedPromptConfig(num_virtual_tokens=4)).save_pretrained(tmp_path)
    shapes = {k: tuple(t.shape) for k, t in load_file(tmp_path / "adapter_model.safetensors").items()}
    width = 32 if family == "vit" else 64
    assert shapes == {
        "base_model.model.gated_prompt.gated_prompt_tokens": (1, 4, 32),
        "base_model.model.gated_prompt.gated_prompt_gate_logits": (3,),
        "base_model.model.gated_prompt.gated_prompt_temperatures": (4,),
        "base_model.model.classifier.weight": (5, width),
        "base_model.model.classifier.bias": (5,),
    }


def test_from_pretrained_and_auto(family, tmp_path) -> None:
    BASES[family]().save_pretrained(tmp_path / "base")
    base = type(BASES[family]()).from_pretrained(tmp_path / "base")
    model = get_peft_model(base, GatedPromptConfig(num_virtual_tokens=4, temperature_init=1.3))
    model.save_pretrained(tmp_path / "adapter")
    wanted = logits(model)
    again = PeftModel.from_pretrained(type(base).from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    assert torch.equal(logits(again), wanted)
    assert not any(p.requires_grad for p in again.parameters())
    auto = AutoPeftModel.from_pretrained(tmp_path / "adapter")
    assert type(auto.base_model.model) is type(base)
    assert torch.equal(logits(auto), wanted)
    trainable = PeftModel.from_pretrained(
        type(base).from_pretrained(tmp_path / "base"), tmp_path / "adapter", is_trainable=True
    )
    assert trainable.get_nb_trainable_parameters()[0] == model.get_nb_trainable_parameters()[0]


def test_adapters_are_added_switched_and_deleted(family) -> None:
    torch.manual_seed(0)
    model = get_peft_model(BASES[family](), GatedPromptConfig(num_virtual_tokens=4), adapter_name="a")
    with model.disable_adapter():
        base = logits(model)
    first = logits(model)
    model.add_adapter("b", GatedPromptConfig(num_virtual_tokens=9, insert_at=2))
    assert torch.equal(logits(model), first)  # adding activates nothing
    model.set_adapter("b")
    second = logits(model)
    assert not torch.equal(first, second)
    assert gated_prompt.gates(model).shape == (1,)
    assert gated_prompt.gates(model, "a").shape == (3,)
    model.set_adapter("a")
    assert torch.equal(logits(model), first)
    trained = {n.rsplit(".", 1)[1] for n, p in model.named_parameters() if p.requires_grad and "gated_prompt" in n}
    assert trained == {"a"}
    model.delete_adapter("b")
    assert torch.equal(logits(model), first)
    assert not any(n.endswith(".b") for n, _ in model.named_parameters())
    with pytest.raises(ValueError, match="b"):
        model.set_adapter("b")
    assert torch.equal(logits(model.unload()), base)


def trained(model) -> set[str]:
    return {name.removeprefix("base_model.model.") for name, p in model.named_parameters() if p.requires_grad}


def test_a_further_adapter_neither_freezes_nor_frees_the_first(family, tmp_path) -> None:
    config = {"num_virtual_tokens": 4}
    model = get_peft_model(BASES[family](), GatedPromptConfig(**config))
    model.save_pretrained(tmp_path)
    first = trained(model)
    assert {name.split(".")[0] for name in first} == {"gated_prompt", "classifier"}
    model.load_adapter(tmp_path, "for_inference")
    assert trained(model) == first
    model.set_adapter("for_inference")
    model.set_adapter("default")
    assert trained(model) == first

    frozen = PeftModel.from_pretrained(BASES[family](), tmp_path)
    frozen.add_adapter("new", GatedPromptConfig(**config))
    assert trained(frozen) == set()
    with pytest.raises(GatedPromptError):
        frozen.add_adapter("deeper", GatedPromptConfig(insert_at=9))
    assert trained(frozen) == set()
    frozen.set_adapter("new")
    assert trained(frozen) == {name.replace("default", "new") for name in first}


def test_a_config_object_is_kept_by_the_first_model_and_serves_others(family) -> None:
    config = GatedPromptConfig(num_virtual_tokens=4)
    shallow = get_peft_model(BASES[family](num_hidden_layers=3), config)
    deep = get_peft_model(BASES[family](num_hidden_layers=5), config)
    assert [model.peft_config["default"].num_layers for model in (shallow, deep)] == [3, 5]
    assert shallow.peft_config["default"] is config
    assert deep.peft_config["default"].modules_to_save == config.modules_to_save


def test_the_bank_wraps_no_layer(family) -> None:
    bank = bank_of(get_peft_model(BASES[family](), GatedPromptConfig(num_virtual_tokens=4)))
    for name in ("weight", "bias"):
        assert not hasattr(bank, name)
    assert bank.in_features == bank.out_features == 32
    assert "gated_prompt_tokens" in repr(bank)


def test_saving_as_a_pickle_is_refused(family, tmp_path) -> None:
    model = get_peft_model(BASES[family](), GatedPromptConfig(num_virtual_tokens=4))
    for folder in (tmp_path / "new", tmp_path / "used"):
        if folder.name == "used":
            model.save_pretrained(folder)
        bank_of(model).gated_prompt_tokens["default"].data.add_(1)  # older safetensors are not what is saved now
        with pytest.raises(UnsupportedOperationError, match=r"adapter_model.bin is a pickle, .* without safe_serial"):
            model.save_pretrained(folder, safe_serialization=False)
        model.save_pretrained(folder)
        again = PeftModel.from_pretrained(BASES[family](), folder)
        assert torch.equal(logits(again), logits(model))


def test_two_active_adapters_are_refused(family) -> None:
    model = get_peft_model(BASES[family](), GatedPromptConfig(num_virtual_tokens=4), adapter_name="a")
    model.add_adapter("b", GatedPromptConfig(num_virtual_tokens=4))
    wanted = logits(model)
    with pytest.raises(UnsupportedOperationError, match=r"one active adapter, got \['a', 'b'\]"):
        model.base_model.set_adapter(["a", "b"])
    assert torch.equal(logits(model), wanted)


@pytest.mark.parametrize("call", ["merge_and_unload", "merge_adapter", "unmerge_adapter"])
def test_merging_is_refused_and_changes_nothing(family, call) -> None:
    model = get_peft_model(BASES[family](), GatedPromptConfig(num_virtual_tokens=4))
    wanted = logits(model)
    with pytest.raises(UnsupportedOperationError, match="extra tokens, not a change of a matrix"):
        getattr(model, call)()
    assert torch.equal(logits(model), wanted)


def test_a_base_is_wrapped_once(family) -> None:
    base = BASES[family]()
    model = get_peft_model(base, GatedPromptConfig(num_virtual_tokens=4))
    wanted = logits(model)
    for target, name in ((base, "default"), (base, "other"), (model, "default")):
        with pytest.raises(UnsupportedOperationError, match="already carries gated prompts"):
            get_peft_model(target, GatedPromptConfig(num_virtual_tokens=4), adapter_name=name)
    assert torch.equal(logits(model), wanted)
    get_peft_model(model.unload(), GatedPromptConfig(num_virtual_tokens=4))


def test_eval_backbone(family) -> None:
    settings = {"hidden_dropout_prob": 0.5}
    for eval_backbone in (True, False):
        config = GatedPromptConfig(num_virtual_tokens=4, eval_backbone=eval_backbone, prompt_dropout=0.0)
        model = get_peft_model(BASES[family](**settings), config).train()
        blocks = [m for m in model.modules() if type(m).__name__ in ("ViTLayer", "Dinov2Layer")]
        assert len(blocks) == 4
        assert all(block.training for block in blocks)  # transformers checkpoints activations only then
        assert {c.training for b in blocks for c in b.modules() if c is not b} == {not eval_backbone}
        same = torch.equal(model(images()).logits, model(images()).logits)
        assert same is eval_backbone
        assert not any(m.training for m in model.eval().modules())


def test_prompt_dropout_acts_in_training_alone(family) -> None:
    model = get_peft_model(BASES[family](), GatedPromptConfig(num_virtual_tokens=4, prompt_dropout=0.5))
    bank = bank_of(model)
    bank.gated_prompt_tokens["default"].data.normal_()
    assert torch.equal(logits(model), logits(model))
    model.train()
    assert not torch.equal(model(images()).logits, model(images()).logits)


def test_failure_inside_peft_leaves_no_bank(monkeypatch) -> None:
    from peft.tuners.tuners_utils import BaseTuner

    base = vit()
    wanted = logits(base)

    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("for the test")

    monkeypatch.setattr(BaseTuner, "inject_adapter", fail)
    with pytest.raises(RuntimeError, match="for the test"):
        get_peft_model(base, GatedPromptConfig(num_virtual_tokens=4))
    monkeypatch.undo()
    assert torch.equal(logits(base), wanted)
    get_peft_model(base, GatedPromptConfig(num_virtual_tokens=4))


def test_forward_of_the_bank_is_refused() -> None:
    model = get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=4))
    with pytest.raises(GatedPromptError, match="not a layer"):
        bank_of(model)(images())
