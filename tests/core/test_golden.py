"""The tuner computes what the paper's official code computes: nine cases, two precisions.

The files and how they came about: golden/README.md.
"""

import pytest
import torch

from helpers.golden_cases import NAMES, Case, official_parameters

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}  # of each tensor's maximum
CASES = [Case(name, dtype) for dtype in TOLERANCE for name in NAMES]


def case_id(case: Case) -> str:
    return f"{case.name}-{str(case.dtype).removeprefix('torch.')}"


def assert_close(found: torch.Tensor, wanted: torch.Tensor, what: str) -> None:
    wanted = wanted.reshape(found.shape)
    assert found.dtype == wanted.dtype
    error = (found - wanted).abs().max().item() / wanted.abs().max().item()
    assert error <= TOLERANCE[found.dtype], f"{what}: off by {error:.2e} of the maximum"


def test_nine_cases_are_here() -> None:
    assert len(NAMES) == 9


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_output_loss_and_gradients(case: Case) -> None:
    model = case.model()
    pixels, labels = case.batch(0)
    seen = []
    handle = model.base_model.model.classifier.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    logits = model(pixels).logits
    handle.remove()
    loss = torch.nn.functional.cross_entropy(logits, labels)
    loss.backward()

    assert_close(seen[0].detach(), case.expected["out.features"], "features")
    assert_close(logits.detach(), case.expected["out.logits"], "logits")
    assert_close(loss.detach(), case.expected["out.loss"], "loss")
    gradients = official_parameters(model, gradient=True)
    assert sorted(gradients) == sorted(k.removeprefix("grad.") for k in case.expected if k.startswith("grad."))
    for name, gradient in gradients.items():
        assert_close(gradient, case.expected[f"grad.{name}"], f"gradient of {name}")


@pytest.mark.parametrize("case", [c for c in CASES if c.config().temperature], ids=case_id)
def test_temperatures_are_projected_in_place(case: Case) -> None:
    model = case.model().eval()
    with torch.no_grad():
        model(case.batch(0)[0])
    after = official_parameters(model)["enc.temp"]
    assert_close(after, case.expected["out.temp_after_forward"], "temperatures after a forward")


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_three_steps_of_sgd(case: Case) -> None:
    model = case.model().train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5, momentum=0.9)
    for step in range(3):
        pixels, labels = case.batch(step)
        loss = torch.nn.functional.cross_entropy(model(pixels).logits, labels)
        assert_close(loss.detach(), case.expected["steps.loss"][step], f"loss of step {step}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    prefix = "after3." if case.dtype == torch.float32 else "step3."
    for name, value in official_parameters(model).items():
        assert_close(value, case.expected[prefix + name], f"{name} after three steps")
