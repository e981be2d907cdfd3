"""What starts from images leave alone, also after an error, and what they refuse."""

import copy
from collections.abc import Iterator

import pytest
import torch
from peft import PeftModel

import gated_prompt
from gated_prompt import GatedPromptError, UnsupportedOperationError, initialize_prompts
from helpers.models import bank_of, images, vit
from helpers.starts import BATCHES, METHODS, block_inputs, make, places, prompts


@pytest.mark.parametrize("method", METHODS)
def test_only_the_prompts_change(method: str) -> None:
    model = make(base=vit(hidden_dropout_prob=0.3)).train()
    model.base_model.model.classifier.modules_to_save["default"].weight.data.add_(1)
    prefix = "base_model.model.gated_prompt.gated_prompt_tokens"
    state = {key: value.clone() for key, value in model.state_dict().items()}
    needs = {name: p.requires_grad for name, p in model.named_parameters()}
    modes = {name: m.training for name, m in model.named_modules()}
    hooks = {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()}
    replaced = {name: vars(m).get("forward") for name, m in model.named_modules()}
    initialize_prompts(model, BATCHES, method=method)
    after = model.state_dict()
    assert {key for key in state if not torch.equal(after[key], state[key])} == {f"{prefix}.default"}
    assert {name: p.requires_grad for name, p in model.named_parameters()} == needs
    assert {name: m.training for name, m in model.named_modules()} == modes and len(set(modes.values())) == 2
    assert hooks == {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()}
    assert replaced == {name: vars(m).get("forward") for name, m in model.named_modules()}
    assert all(p.grad is None for p in model.parameters())
    with model.disable_adapter(), torch.no_grad():
        assert torch.equal(model.eval()(BATCHES[0]).logits, vit()(BATCHES[0]).logits)


def broken(after: int) -> Iterator[torch.Tensor]:
    yield from BATCHES[:after]
    raise RuntimeError("the disk is gone")


@pytest.mark.parametrize("after", [0, 2])
def test_an_error_leaves_everything_as_it_was(after: int) -> None:
    model = make().train()
    base = model.base_model.model
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="the disk is gone"):
        initialize_prompts(model, broken(after))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert model.training and base.gated_prompt.adapters_in_use and base.gated_prompt.active_names == ["default"]
    assert torch.is_grad_enabled()
    model(BATCHES[0]).logits.sum().backward()
    assert base.gated_prompt.gated_prompt_tokens["default"].grad.abs().sum() > 0
    initialize_prompts(model, BATCHES)  # not counted as trained


@torch.no_grad()
def nudge(model: PeftModel) -> None:
    bank_of(model).gated_prompt_tokens["default"][0, 0, 0] += 1e-3


def test_trained_prompts_are_kept_unless_told(tmp_path) -> None:
    model = make()
    initialize_prompts(model, BATCHES)
    initialize_prompts(model, BATCHES, method="mean")  # a fresh start may be changed
    nudge(model)
    before = prompts(model)
    with pytest.raises(UnsupportedOperationError, match=r"differ from their initial values.* overwrite=True"):
        initialize_prompts(model, BATCHES)
    assert torch.equal(prompts(model), before)
    gated_prompt.save(model, tmp_path)
    loaded = gated_prompt.load(vit(), tmp_path, is_trainable=True)
    with pytest.raises(UnsupportedOperationError, match="trained, loaded or set"):
        initialize_prompts(loaded, BATCHES)
    initialize_prompts(loaded, BATCHES, overwrite=True)
    assert -1 not in places(prompts(loaded)[0], block_inputs(vit(), 0).flatten(0, 1))


def test_half_precision_and_copies_are_still_fresh() -> None:
    model = make(base=vit().to(torch.bfloat16))
    assert prompts(model).dtype == torch.float32  # PEFT casts adapters up after they were made
    initialize_prompts(copy.deepcopy(model), BATCHES)
    initialize_prompts(model, BATCHES)
    tokens = prompts(model)
    assert torch.equal(tokens.bfloat16().float(), tokens)  # rows of what the blocks got, in their precision


@pytest.mark.parametrize(
    ("batches", "settings", "words"),
    [
        ([], {}, "gave 0 tokens to start from, but num_virtual_tokens is 6. Give more images"),
        ([], {"method": "match"}, "no images to start prompts from"),
        ([images(1)[:, :, :8, :8]], {"batch": {"interpolate_pos_encoding": True}}, "gave 1 tokens"),
        ([images(1)], {"method": "kmeans", "count": 17}, "gave 16 tokens to start from, but num_virtual_tokens is 17"),
        (BATCHES, {"method": "median"}, "method is 'median'. Choose from: 'sample', 'mean', 'max', 'kmeans', 'match'"),
        (BATCHES, {"seed": -1}, "seed is -1. Expected an integer from 0"),
        (BATCHES, {"before_positions": True, "insert_at": 1}, "before_positions is about prompts at block 0"),
        (BATCHES, {"before_positions": True, "method": "match"}, "before_positions is about .* not for 'match'"),
        (BATCHES, {"neighbours": 0, "method": "match"}, "neighbours is 0"),
        (BATCHES, {"neighbours": 17, "method": "match"}, "neighbours is 17, and an image has 16 patch tokens"),
        (BATCHES, {"orthogonal": 1.5, "method": "match"}, r"orthogonal is 1.5. Expected a weight in \[0, 1\]"),
        (BATCHES, {"orthogonal": 0.5}, "neighbours and orthogonal are for method='match', not 'sample'"),
        ([torch.full((2, 3, 32, 32), float("nan"))], {}, "tokens at block 0 hold NaN"),
        (images(2), {}, r"pixels of shape \(3, 32, 32\). Expected pixel values \(images, channels"),
        ([{"images": images(1)}], {}, "keys 'images'. Expected a tensor 'pixel_values'"),
        ([([1, 2], None)], {}, "pixels a list"),
        (
            [{"pixel_values": images(1, size=s), "interpolate_pos_encoding": True} for s in (32, 48)],
            {"method": "match"},
            "gave 16 and 36 tokens. method='match'",
        ),
    ],
)
def test_what_is_refused_changes_nothing(batches: object, settings: dict, words: str) -> None:
    settings = dict(settings)
    extra = settings.pop("batch", None)
    if extra:
        batches = [{"pixel_values": pixels, **extra} for pixels in batches]
    model = make(settings.pop("count", 6), insert_at=settings.pop("insert_at", 0))
    before = prompts(model)
    with pytest.raises(GatedPromptError, match=words):
        initialize_prompts(model, batches, **settings)
    assert torch.equal(prompts(model), before)


def test_a_model_without_an_adapter() -> None:
    with pytest.raises(GatedPromptError, match="ViTForImageClassification carries no gated prompts"):
        initialize_prompts(vit(), BATCHES)


def test_without_scikit_learn(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.cluster", None)
    with pytest.raises(GatedPromptError, match=r"needs scikit-learn. Run pip install 'gated-prompt\[init\]'"):
        initialize_prompts(make(), broken(0), method="kmeans")  # said before any image is asked for
