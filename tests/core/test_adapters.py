"""Several adapters on one base: names, switching, deleting, replacing, and what an optimizer sees."""

import warnings

import pytest
import torch
from peft import PeftModel, get_peft_model

from gated_prompt import AdapterNameError, GatedPromptConfig, UnsupportedOperationError, gates, temperatures
from helpers.models import bank_of, dinov2, images, vit

LAYERS, WIDTH, LABELS = 4, 32, 5


def config(**settings: object) -> GatedPromptConfig:
    return GatedPromptConfig(**{"num_virtual_tokens": 3, "prompt_dropout": 0.0, **settings})


def randomise(model: PeftModel, name: str, seed: int) -> None:
    """Give this adapter other prompts, gates, temperatures and head."""
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in model.named_parameters():
        if f".{name}." in f"{key}." and ("gated_prompt" in key or "modules_to_save" in key):
            parameter.data.uniform_(0.5, 1.5, generator=generator)


@torch.no_grad()
def logits(model: torch.nn.Module, name: str | None = None) -> torch.Tensor:
    if name is not None:
        model.set_adapter(name)
    return model.eval()(pixel_values=images()).logits


def alone(name: str, seed: int, **settings: object) -> torch.Tensor:
    """Logits of a model with this adapter only."""
    model = get_peft_model(vit(), config(**settings), adapter_name=name)
    randomise(model, name, seed)
    return logits(model)


SETTINGS = {
    "a": dict(num_virtual_tokens=2),
    "ab": dict(num_virtual_tokens=5, gates=False),
    "b": dict(deep=True, temperature=False),
    "default": dict(insert_at=2, pooling="patches"),
}


def crowd() -> PeftModel:
    """Four adapters of different P and kind; 'a' is active."""
    names = list(SETTINGS)
    model = get_peft_model(vit(), config(**SETTINGS["a"]), adapter_name="a")
    for name in names[1:]:
        model.add_adapter(name, config(**SETTINGS[name]))
    for seed, name in enumerate(names):
        randomise(model, name, seed)
    return model


def test_each_of_several_adapters_computes_what_it_computes_alone() -> None:
    model = crowd()
    for _ in range(2):
        for seed, name in enumerate(SETTINGS):
            assert torch.equal(logits(model, name), alone(name, seed, **SETTINGS[name])), name
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(vit()))
    assert torch.equal(logits(model), logits(model, "default"))


def test_unload_gives_the_base_with_its_own_head() -> None:
    base = crowd().unload()
    assert base.state_dict().keys() == vit().state_dict().keys()
    assert torch.equal(logits(base), logits(vit()))


def test_each_of_several_adapters_is_saved_and_loaded_alone(tmp_path) -> None:
    model = crowd()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(vit(), tmp_path / "a", adapter_name="x")
    for name, folder in {"y": "ab", "default": "b", "a": ""}.items():
        loaded.load_adapter(tmp_path / folder, name)
    for name, original in {"x": "a", "y": "ab", "default": "b", "a": "default"}.items():
        assert torch.equal(logits(loaded, name), logits(model, original)), f"{original} loaded as {name}"


@pytest.mark.parametrize("name", ["prompt", "gate", "default", "a", "d", "ab", "temperatures", "vit", "0", "a b", "é"])
def test_names_that_work(tmp_path, name: str) -> None:
    """Also if the name of another adapter is part of this one, or vice versa."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of names that are part of its prefix
        model = get_peft_model(vit(), config(), adapter_name=name)
        others = [f"{name}b", f"x{name}"]
        for seed, other in enumerate([name, *others]):
            if seed:
                model.add_adapter(other, config(num_virtual_tokens=2))
            randomise(model, other, seed)
        model.save_pretrained(tmp_path)
        for other in [name, *others]:
            folder = tmp_path / other if other != "default" else tmp_path
            for new in {name, "default"}:
                loaded = PeftModel.from_pretrained(vit(), folder, adapter_name=new)
                assert torch.equal(logits(loaded), logits(model, other)), f"{other} loaded as {new}"
        expected = logits(model, others[0])
        model.delete_adapter(name)
        assert torch.equal(logits(model, others[0]), expected)


BAD = ["", ".", "a.b", "__base__", "gated_prompt", "gated_prompt_tokens", "my_gated_prompt_2", "modules_to_save"]
BAD += [
    "classifier",
    "model",
    "base_model",
    "original_module",
    "weight",
    "bias",
    "keys",
    "forward",
    "_modules",
    "type",
]


@pytest.mark.parametrize("name", BAD)
def test_names_that_cannot_work_are_refused_and_nothing_changes(tmp_path, name: str) -> None:
    base = vit()
    keys = base.state_dict().keys()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(AdapterNameError, match="cannot be used"):
            get_peft_model(base, config(), adapter_name=name)
        assert base.state_dict().keys() == keys and torch.equal(logits(base), logits(vit()))
        model = get_peft_model(base, config())
        model.save_pretrained(tmp_path)
        before, keys = logits(model), model.state_dict().keys()
        with pytest.raises(AdapterNameError):
            model.add_adapter(name, config())
        with pytest.raises(AdapterNameError):
            model.load_adapter(tmp_path, name)
    assert list(model.peft_config) == ["default"] and model.state_dict().keys() == keys
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize(("first", "second"), [("birds", "Birds"), ("caf\u00e9", "cafe\u0301"), ("ﬁsh", "fish")])
def test_names_that_are_one_folder_elsewhere_are_refused(first: str, second: str) -> None:
    model = get_peft_model(vit(), config(), adapter_name=first)
    with pytest.raises(AdapterNameError, match="one folder on file systems that ignore case or normalize Unicode"):
        model.add_adapter(second, config())
    model.add_adapter("other", config())


@pytest.mark.parametrize("name", ["con", "NUL", "Com1", "lpt9"])
def test_devices_of_windows_are_no_names(name: str) -> None:
    with pytest.raises(AdapterNameError, match="a device on Windows"):
        get_peft_model(vit(), config(), adapter_name=name)


def test_a_head_name_is_free_where_that_head_is_not_saved() -> None:
    model = get_peft_model(vit(), config(modules_to_save=[]), adapter_name="classifier")
    assert logits(model).isfinite().all()


def test_deleting_an_inactive_adapter() -> None:
    model = crowd()
    before = logits(model, "a")
    model.delete_adapter("ab")
    assert model.active_adapter == "a" and torch.equal(logits(model), before)
    assert not [key for key in model.state_dict() if ".ab" in key]
    with pytest.raises(ValueError, match="ab"):
        model.set_adapter("ab")


def test_deleting_the_active_adapter_activates_another_with_its_head() -> None:
    model = crowd()
    model.set_adapter("a")
    with pytest.warns(UserWarning, match="a was active"):
        model.delete_adapter("a")
    active = model.active_adapter
    assert active in SETTINGS and active != "a"
    assert torch.equal(logits(model), alone(active, list(SETTINGS).index(active), **SETTINGS[active]))


def test_deleting_every_adapter_leaves_the_base() -> None:
    model = crowd()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in SETTINGS:
            model.delete_adapter(name)
    # PeftModel.__call__ itself needs an adapter, with every method; what it wraps does not.
    assert torch.equal(logits(model.base_model), logits(vit()))
    assert not [key for key in model.state_dict() if "gated_prompt" in key]
    assert torch.equal(logits(model.unload()), logits(vit()))


def test_deleting_an_unknown_adapter_is_refused() -> None:
    model = crowd()
    before = logits(model)
    with pytest.raises(ValueError, match="nobody"):
        model.delete_adapter("nobody")
    assert torch.equal(logits(model), before)


def test_adding_under_a_taken_name(tmp_path) -> None:
    """PEFT replaces the adapter (0.18) or refuses (0.21); it must never mix both adapters."""
    model = get_peft_model(vit(), config(), adapter_name="a")
    model.add_adapter("b", config())
    try:
        model.add_adapter("b", config(num_virtual_tokens=2, gates=False, temperature=False))
    except ValueError:
        assert gates(model, "b").numel() == LAYERS - 1
    else:
        assert gates(model, "b").numel() == 0 and torch.equal(temperatures(model, "b"), torch.ones(LAYERS))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(vit(), tmp_path / "b")  # refuses tensors that do not belong to it
    assert torch.equal(logits(loaded), logits(model, "b"))


def test_two_active_adapters_are_refused_and_nothing_is_switched() -> None:
    model = crowd()
    before = logits(model, "a")
    with pytest.raises(UnsupportedOperationError, match="one active adapter"):
        model.base_model.set_adapter(["ab", "b"])
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (dict(), 3 * WIDTH + (LAYERS - 1) + LAYERS),
        (dict(insert_at=1), 3 * WIDTH + (LAYERS - 2) + (LAYERS - 1)),
        (dict(deep=True), LAYERS * 3 * WIDTH + LAYERS),
        (dict(deep=True, temperature=False, insert_at=2), 2 * 3 * WIDTH),
        (dict(gates=False), 3 * WIDTH + LAYERS),
        (dict(gated_blocks=[1, 3], temperature=False), 3 * WIDTH + 2),
        (dict(num_virtual_tokens=50), 50 * WIDTH + 2 * LAYERS - 1),
    ],
)
@pytest.mark.parametrize(("base", "head"), [(vit, WIDTH * LABELS + LABELS), (dinov2, 2 * WIDTH * LABELS + LABELS)])
def test_number_of_trainable_parameters(base, head: int, settings: dict, expected: int) -> None:
    """P D (L - k times when deep) + G + (L - k), and the head."""
    model = get_peft_model(base(), config(**settings))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    assert sum(p.numel() for group in optimizer.param_groups for p in group["params"]) == expected + head
    assert model.get_nb_trainable_parameters()[0] == expected + head
    bare = get_peft_model(base(), config(**settings, modules_to_save=[]))
    assert bare.get_nb_trainable_parameters()[0] == expected


def test_only_the_active_adapter_trains() -> None:
    model = crowd()
    for name in SETTINGS:
        model.set_adapter(name)
        trained = [key for key, p in model.named_parameters() if p.requires_grad]
        assert trained and all(f".{name}." in f"{key}." for key in trained)
        model.zero_grad()
        model.train()(pixel_values=images()).logits.square().mean().backward()
        assert [key for key, p in model.named_parameters() if p.grad is not None] == trained


def test_the_mode_follows_the_switch() -> None:
    """`eval_backbone` belongs to one adapter; after switching, train() applies that of the active one."""
    model = get_peft_model(vit(), config(), adapter_name="a")
    model.add_adapter("b", config(eval_backbone=False))
    inside = bank_of(model)._frozen_modules[-1]
    for name, training in {"a": False, "b": True}.items():
        model.set_adapter(name)
        assert model.train() and inside.training is training
        assert not model.eval().training and not inside.training
