"""A head that starts where a linear probe ends: on the features it will see, and nothing else moves."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler
from torch import nn

import gated_prompt
from gated_prompt import GatedPromptConfig, GatedPromptError, initialize_head
from helpers.head_worker import CLASSES, SHARES, start
from helpers.models import build, dinov2, vit
from helpers.two_processes import run

BATCHES = [batch for share in SHARES for batch in share]
PIXELS = torch.cat([pixels for pixels, _ in BATCHES])


def make(base: nn.Module | None = None, count: int = 5, **settings: object) -> PeftModel:
    torch.manual_seed(1)
    return get_peft_model(base or vit(), GatedPromptConfig(num_virtual_tokens=count, **settings))


def trained_head(model: nn.Module) -> nn.Module:
    return model.base_model.model.classifier.modules_to_save["default"]


@torch.no_grad()
def seen(model: nn.Module, head: nn.Module, batches: object = BATCHES) -> np.ndarray:
    """What enters the head, float64 (N, D), by a hook of the test's own."""
    rows = []
    handle = head.register_forward_pre_hook(lambda _, args: rows.append(args[0].double()))
    for pixels, _ in batches:
        model.eval()(pixels)
    handle.remove()
    return torch.cat(rows).numpy()


@torch.no_grad()
def scores(model: nn.Module) -> np.ndarray:
    return torch.cat([model.eval()(pixels).logits for pixels, _ in BATCHES]).double().numpy()


def scaled(features: np.ndarray) -> np.ndarray:
    return StandardScaler().fit_transform(features)


@pytest.mark.parametrize("settings", [{}, {"pooling": "prompts_and_patches"}, {"deep": True, "temperature": False}])
@pytest.mark.parametrize("l2", [0.1, 10.0])
def test_the_logits_are_those_of_scikit_learn_on_the_features_with_prompts(settings, l2) -> None:
    model = make(**settings)
    features = scaled(seen(model, trained_head(model)))
    oracle = LogisticRegression(C=1 / l2, tol=1e-10, max_iter=10_000).fit(features, CLASSES)
    initialize_head(model, BATCHES, l2=l2)
    wanted, found = oracle.predict_log_proba(features), torch.tensor(scores(model)).log_softmax(-1).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    with model.disable_adapter():
        bare = scaled(seen(model, model.base_model.model.classifier.original_module))
    assert np.abs(bare - features).max() > 0.1  # so a probe without the prompts would have another answer


def test_several_labels_are_one_regression_each() -> None:
    model = make()
    labels = (torch.rand(40, 5, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    labels[:, 2] = 0  # never there
    batches = list(zip([p for p, _ in BATCHES], labels.split([9, 11, 20]), strict=True))
    features = scaled(seen(model, trained_head(model)))
    initialize_head(model, batches)
    found = scores(model)
    for column in (0, 1, 3, 4):
        oracle = LogisticRegression(tol=1e-10, max_iter=10_000).fit(features, labels[:, column])
        np.testing.assert_allclose(found[:, column], oracle.decision_function(features), atol=2e-4)
    assert (found[:, 2] < -4).all() and np.ptp(found[:, 2]) < 1e-6


def test_numbers_are_fitted_by_ridge_regression() -> None:
    model = make(vit(num_labels=1))
    numbers = torch.randn(40, generator=torch.Generator().manual_seed(0))
    batches = list(zip([p for p, _ in BATCHES], numbers.split([9, 11, 20]), strict=True))
    features = scaled(seen(model, trained_head(model)))
    initialize_head(model, batches, l2=3.0)
    wanted = Ridge(alpha=3.0).fit(features, numbers.double().numpy()).predict(features)
    np.testing.assert_allclose(scores(model)[:, 0], wanted, atol=1e-4)


def test_class_weights_are_those_of_scikit_learn() -> None:
    model = make()
    features = scaled(seen(model, trained_head(model)))
    initialize_head(model, BATCHES, class_weights=[5, 1, 1, 0.5, 1])
    weights = {0: 5, 1: 1, 2: 1, 3: 0.5, 4: 1}
    oracle = LogisticRegression(class_weight=weights, tol=1e-10, max_iter=10_000).fit(features, CLASSES)
    found = torch.tensor(scores(model)).log_softmax(-1).numpy()
    np.testing.assert_allclose(found, oracle.predict_log_proba(features), atol=2e-4)


def test_a_class_without_images_never_wins() -> None:
    model = make()
    few = [(PIXELS[CLASSES != 3], CLASSES[CLASSES != 3])]
    initialize_head(model, few)
    head = trained_head(model)
    assert head.weight[3].abs().max() == 0
    assert (scores(model).argmax(1) != 3).all() and np.isfinite(scores(model)).all()


def lora(base: nn.Module) -> PeftModel:
    names = ["q_proj", "query"]  # transformers 5.x and 4.57
    return get_peft_model(base, LoraConfig(target_modules=names, modules_to_save=["classifier"]))


def linear(base: nn.Module) -> nn.Module:
    base.requires_grad_(False)
    base.classifier.requires_grad_(True)
    return base


class Deep(nn.Sequential):
    """A head that ends in a Linear."""


def with_deep_head() -> nn.Module:
    base = vit()
    base.classifier = Deep(nn.LayerNorm(32), nn.Linear(32, 16), nn.GELU(), nn.Linear(16, 5))
    return make(base)


@pytest.mark.parametrize(
    "made",
    [lambda: make(dinov2()), lambda: lora(vit()), lambda: linear(vit()), with_deep_head],
    ids=["cls and mean", "lora", "linear", "deep head"],
)
def test_every_head_that_ends_in_a_linear_fits_what_it_saw(made) -> None:
    model = made()
    before = float((torch.tensor(scores(model)).argmax(1) == CLASSES).double().mean())
    initialize_head(model, BATCHES, l2=1e-4)
    after = float((torch.tensor(scores(model)).argmax(1) == CLASSES).double().mean())
    assert before < 0.6 and after > 0.8


def test_two_heads_are_both_fitted() -> None:
    """DeiT's teacher has one on the CLS token and one on the distillation token."""
    model = make(build("DeiTForImageClassificationWithTeacher", "DeiTConfig"))
    initialize_head(model, BATCHES, l2=1e-4)
    for name in ("cls_logits", "distillation_logits"):
        found = torch.cat([model.eval()(pixels)[name] for pixels, _ in BATCHES]).argmax(1)
        assert (found == CLASSES).double().mean() > 0.8


def test_only_the_head_changes() -> None:
    model = make(vit(hidden_dropout_prob=0.3)).train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    hooks = {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()}
    torch.manual_seed(3)
    before = torch.get_rng_state()
    initialize_head(model, BATCHES)
    assert torch.equal(torch.get_rng_state(), before)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, state[key])}
    head = "base_model.model.classifier.modules_to_save.default"
    assert changed == {f"{head}.weight", f"{head}.bias"}
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert hooks == {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()}
    assert all(p.grad is None for p in model.parameters()) and torch.is_grad_enabled()


def test_it_is_deterministic_saved_and_trained(tmp_path) -> None:
    model, again = make(), make()
    initialize_head(model, BATCHES)
    torch.manual_seed(99)
    initialize_head(again, [{"pixel_values": pixels, "labels": labels} for pixels, labels in BATCHES])
    assert torch.equal(trained_head(model).weight, trained_head(again).weight)
    gated_prompt.save(model, tmp_path)
    loaded = gated_prompt.load(vit(), tmp_path)
    np.testing.assert_array_equal(scores(loaded), scores(model))
    assert {id(p) for group in gated_prompt.parameter_groups(model, lr=1) for p in group["params"]} >= {
        id(trained_head(model).weight)
    }


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
def test_two_processes_get_the_head_of_one_that_sees_everything(tmp_path: Path) -> None:
    run(Path(__file__).parents[1] / "helpers" / "head_worker.py", str(tmp_path))
    zero, one = (torch.load(tmp_path / f"heads{rank}.pt") for rank in (0, 1))
    for name in zero:
        assert torch.equal(zero[name], one[name])
        torch.testing.assert_close(zero[name], start(BATCHES), atol=1e-5, rtol=1e-4)
    first, second = (json.loads((tmp_path / f"error{rank}.json").read_text()) for rank in (0, 1))
    assert first == second and "0 to 4" in first and "to 7" in first


def conv_head() -> PeftModel:
    base = vit()
    base.classifier = nn.Sequential(nn.Unflatten(1, (32, 1, 1)), nn.Conv2d(32, 5, 1), nn.Flatten())
    return make(base)


def tanh_head() -> PeftModel:
    base = vit()
    base.classifier = nn.Sequential(nn.Linear(32, 5), nn.Tanh())
    return make(base)


@pytest.mark.parametrize(
    ("made", "batches", "options", "words"),
    [
        (make, [PIXELS], {}, "a batch has no labels"),
        (make, [], {}, "there are no batches"),
        (make, [(PIXELS, CLASSES + 3)], {}, "values from 3 to 7. A head of 5 outputs needs classes 0 to 4"),
        (make, [(PIXELS, CLASSES * 0 + 2)], {}, "all 40 images are of class 2. Expected two classes"),
        (make, [(PIXELS * float("nan"), CLASSES)], {}, "the features hold NaN or infinite values"),
        (make, [(PIXELS, CLASSES[:7])], {}, "40 images came with 7 labels"),
        (make, BATCHES, {"l2": 0.0}, "l2 is 0.0. Expected a finite number above 0"),
        (make, BATCHES, {"problem_type": "binary"}, "problem_type is 'binary'. Choose from: 'single_label"),
        (make, BATCHES, {"class_weights": [1.0]}, "1 class weights for a head of 5 outputs"),
        (conv_head, BATCHES, {}, r"classifier \(Sequential\) does not end in a Linear"),
        (tanh_head, BATCHES, {}, r"classifier \(Sequential\) does not end in a Linear"),
        (lambda: make(modules_to_save=[]), BATCHES, {}, "trains no head. Name it in modules_to_save"),
        (lambda: vit().requires_grad_(False), BATCHES, {}, "trains no head"),
    ],
)
def test_refusals_leave_the_model_as_it_was(made, batches, options, words) -> None:
    model = made()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    hooks = {name: len(m._forward_hooks) for name, m in model.named_modules()}
    with pytest.raises(GatedPromptError, match=words):
        initialize_head(model, batches, **options)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert hooks == {name: len(m._forward_hooks) for name, m in model.named_modules()}


def nearly_constant(model: nn.Module) -> nn.Module:
    """The model with a final norm whose outputs hardly vary beside their mean, as MAE's do."""
    norm = next(module for name, module in model.named_modules() if name.endswith("vit.layernorm"))
    with torch.no_grad():
        norm.weight.mul_(0.002)
        norm.bias.fill_(3.0)
    return model


def test_a_head_that_bfloat16_would_ruin_is_reported() -> None:
    model = nearly_constant(get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=2)))
    pixels, labels = torch.randn(24, 3, 32, 32), torch.arange(24) % 3
    with torch.autocast("cpu", torch.bfloat16), pytest.warns(UserWarning, match="in bfloat16, which rounds away"):
        initialize_head(model, [(pixels, labels)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        initialize_head(model, [(pixels, labels)])


def test_the_head_for_every_backbone_keeps_its_fit_under_autocast() -> None:
    base = gated_prompt.heads.TokenClassifier(nearly_constant(vit()).vit, 3, reads="both")
    model = get_peft_model(base, GatedPromptConfig(num_virtual_tokens=2)).eval()
    pixels, labels = torch.randn(24, 3, 32, 32), torch.arange(24) % 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.autocast("cpu", torch.bfloat16):
            initialize_head(model, [(pixels, labels)], l2=0.01)
            found = model(pixels).logits
    assert found.dtype == torch.float32
    assert (found.argmax(1) == labels).float().mean() > 0.9
