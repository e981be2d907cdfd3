"""Images of one batch with different adapters give the same outputs as each alone."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from torch.utils import _pytree as pytree

from gated_prompt import AdapterNameError, GatedPromptConfig, GatedPromptError, UnsupportedOperationError
from gated_prompt.tuner.request import LOCAL
from helpers.models import TINY, build, dinov2, images, vit

MIXTURE = ["b", "__base__", "a", "b", "c", "a"]
SETTINGS = {
    "a": {"num_virtual_tokens": 2},
    "b": {"num_virtual_tokens": 5, "deep": True},
    "c": {"insert_at": 2, "temperature_init": 2.0, "modules_to_save": []},
}


BASES = {
    "vit": vit,
    "dinov2": dinov2,
    "vit_backbone": lambda: build("ViTModel", "ViTConfig"),
    "feature_maps": lambda: build("Dinov2Backbone", "Dinov2Config", out_features=["stage2", "stage4"]),
    "deit": lambda: build("DeiTForImageClassificationWithTeacher", "DeiTConfig"),
    "siglip": lambda: build("SiglipVisionModel", "SiglipVisionConfig"),
    "beit": lambda: build("BeitForImageClassification", "BeitConfig", use_shared_relative_position_bias=True),
}


def crowd(base: torch.nn.Module) -> PeftModel:
    """Three adapters with different P, gates, temperatures and heads ('c' has the base's head); 'a' is active."""
    common = {"num_virtual_tokens": 3, "gate_init": 0.0}
    model = get_peft_model(base, GatedPromptConfig(**{**common, **SETTINGS["a"]}), adapter_name="a")
    for name in ("b", "c"):
        model.add_adapter(name, GatedPromptConfig(**{**common, **SETTINGS[name]}))
    generator = torch.Generator().manual_seed(4)
    for key, parameter in model.named_parameters():
        if "modules_to_save" in key or "gated_prompt_" in key:
            parameter.data.add_(torch.rand(parameter.shape, generator=generator))
    return model.eval()


@torch.no_grad()
def mixed(model: PeftModel, names: list[str], **kwargs: object) -> object:
    return model(pixel_values=images(len(names)), adapter_names=names, **kwargs)


@torch.no_grad()
def one_by_one(model: PeftModel, names: list[str], **kwargs: object) -> object:
    outputs = []
    for image, name in zip(images(len(names)).split(1), names, strict=True):
        if name == "__base__":
            with model.disable_adapter():
                outputs.append(model(pixel_values=image, **kwargs))
        else:
            model.set_adapter(name)
            outputs.append(model(pixel_values=image, **kwargs))
    return pytree.tree_map(lambda *parts: torch.cat(parts), *outputs)


def assert_close(found: object, wanted: object) -> None:
    assert type(found) is type(wanted)
    found, wanted = pytree.tree_leaves(found), pytree.tree_leaves(wanted)
    assert len(found) == len(wanted) > 0
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_a_mixed_batch_is_the_adapters_one_by_one(base) -> None:
    model = crowd(base())
    found, wanted = mixed(model, MIXTURE), one_by_one(model, MIXTURE)
    assert_close(found, wanted)
    first = pytree.tree_leaves(found)[0]
    same = pytree.tree_leaves(one_by_one(model, ["a"] * len(MIXTURE)))[0]
    for row, name in enumerate(MIXTURE):  # the adapters differ, or the comparison would mean little
        assert torch.allclose(first[row], same[row], atol=1e-4) == (name == "a"), name


@pytest.mark.parametrize("base", ["vit", "dinov2", "vit_backbone"])
def test_hidden_states(base: str) -> None:
    model = crowd(BASES[base]())
    found = mixed(model, MIXTURE, output_hidden_states=True)
    assert len(found.hidden_states) == TINY["num_hidden_layers"] + 1
    assert {h.shape[:2] for h in found.hidden_states} == {(len(MIXTURE), 17)}
    assert_close(found, one_by_one(model, MIXTURE, output_hidden_states=True))


def test_a_tuple_output() -> None:
    model = crowd(vit())
    (found,) = mixed(model, MIXTURE, return_dict=False)
    assert_close(found, one_by_one(model, MIXTURE).logits)


def test_other_inputs_are_split_along() -> None:
    """Masked patches belong to their images; flags belong to all."""
    model = crowd(build("ViTModel", "ViTConfig"))
    model.base_model.model.embeddings.mask_token = torch.nn.Parameter(torch.ones(1, 1, TINY["hidden_size"]))
    masks = torch.arange(6 * 16).reshape(6, 16) % 5 == 0
    with torch.no_grad():
        found = model(images(6), bool_masked_pos=masks, interpolate_pos_encoding=True, adapter_names=MIXTURE)
        for row, name in enumerate(MIXTURE):
            if name != "__base__":
                model.set_adapter(name)
                wanted = model(images(6)[row : row + 1], bool_masked_pos=masks[row : row + 1]).last_hidden_state
                torch.testing.assert_close(found.last_hidden_state[row : row + 1], wanted, rtol=1e-5, atol=1e-5)


def test_nothing_stays_switched() -> None:
    model = crowd(vit())
    model.set_adapter("b")
    gradients = [p.requires_grad for p in model.parameters()]
    with torch.no_grad():
        before = model(pixel_values=images()).logits
        mixed(model, MIXTURE)
        assert torch.equal(model(pixel_values=images()).logits, before)
        assert torch.equal(copy.deepcopy(model)(pixel_values=images()).logits, before)
    assert [p.requires_grad for p in model.parameters()] == gradients
    assert model.active_adapter == "b" and LOCAL.forward is LOCAL.request is None


def test_a_forward_put_there_by_others_is_used_and_kept() -> None:
    model, calls = crowd(vit()), []
    base, wanted = model.base_model.model, mixed(model, MIXTURE).logits
    original = base.forward
    base.forward = lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs)
    own = base.forward
    assert torch.equal(mixed(model, MIXTURE).logits, wanted)
    assert len(calls) == 1 and base.forward is own  # only the vision tower runs for each adapter


@pytest.mark.parametrize(
    ("names", "error", "text"),
    [
        (["a", "nobody", "b"], AdapterNameError, "'nobody'. Choose from: a, b, c, __base__"),
        (["a", "b"], UnsupportedOperationError, "2 names for a batch of 3"),
        ([], UnsupportedOperationError, "0 names for a batch of 3"),
        ("abc", UnsupportedOperationError, "list with one name"),
    ],
)
def test_wrong_names_are_refused_and_nothing_stays_switched(names, error: type, text: str) -> None:
    model = crowd(vit())
    before = model(pixel_values=images()).logits
    with pytest.raises(error, match=text) as caught:
        model(pixel_values=images(3), adapter_names=names)
    assert isinstance(caught.value, GatedPromptError)
    assert torch.equal(model(pixel_values=images()).logits, before)
    assert LOCAL.forward is LOCAL.request is None


def test_training_mode_is_refused() -> None:
    with pytest.raises(UnsupportedOperationError, match="eval"):
        mixed(crowd(vit()).train(), MIXTURE)


def test_what_belongs_to_no_image_is_refused() -> None:
    model = crowd(build("ViTModel", "ViTConfig"))
    with pytest.raises(UnsupportedOperationError, match="compute it from the logits"):
        mixed(model, MIXTURE, labels=torch.zeros(6, dtype=torch.long))


def test_a_loss_outside_of_the_tower_is_that_of_all_images() -> None:
    found = mixed(crowd(vit()), MIXTURE, labels=torch.arange(6) % 5)
    torch.testing.assert_close(found.loss, torch.nn.functional.cross_entropy(found.logits, torch.arange(6) % 5))


def test_lora_below_acts_on_all_images() -> None:
    config = LoraConfig(r=2, target_modules=["q_proj", "query"], init_lora_weights=False)
    base = inject_adapter_in_model(config, vit(), adapter_name="low_rank")
    below = base(pixel_values=images(6)).logits
    model = crowd(base)
    found = mixed(model, MIXTURE)
    assert_close(found, one_by_one(model, MIXTURE))
    torch.testing.assert_close(found.logits[1], below[1], rtol=1e-5, atol=1e-5)


def test_images_of_the_base_are_never_stripped() -> None:
    """Here the base's sequence (37) is as long as the last one with prompts (17 + 20)."""
    model = get_peft_model(dinov2(), GatedPromptConfig(num_virtual_tokens=20), adapter_name="a").eval()
    with torch.no_grad():
        model(pixel_values=images(size=32))
        options = {"pixel_values": images(size=48), "return_dict": False, "output_hidden_states": True}
        found = model(**options, adapter_names=["__base__"] * 2)
        with model.disable_adapter():
            assert_close(found, model(**options))
