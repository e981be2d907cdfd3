"""The linear probe against scikit-learn and a NumPy ridge: losses, predictions, folds, weights, empty classes."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from gated_prompt import GatedPromptError
from gated_prompt.starts.linear_probe import PROBLEMS, STRENGTHS, fit_linear, fit_path

DRAW = torch.Generator().manual_seed(0)


def features(count: int = 120, width: int = 30) -> torch.Tensor:
    """Correlated, with scales from 0.01 to 100 and a constant column."""
    x = torch.randn(count, width, generator=DRAW) @ torch.randn(width, width, generator=DRAW)
    return torch.cat((x * torch.logspace(-2, 2, width), torch.full((count, 1), 3.0)), 1).double() + 5


def classes(x: torch.Tensor, count: int = 4) -> torch.Tensor:
    z = (x - x.mean(0)) / x.std(0).clamp(min=1e-9)
    return (z[:, :count] + torch.randn(len(x), count, generator=DRAW)).argmax(1)


def scores(x: torch.Tensor, fit: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return x @ fit[0].T + fit[1]


@pytest.mark.parametrize("width", [30, 300], ids=["more images than features", "fewer"])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5, 3.0]], ids=["plain", "weighted"])
def test_softmax_is_that_of_scikit_learn(width: int, weights: list[float] | None) -> None:
    x = features(width=width)
    y = classes(x)
    scaler = StandardScaler().fit(x)
    factors = torch.ones(4).double() if weights is None else torch.tensor(weights).double()
    for l2, (weight, bias) in zip(
        STRENGTHS, fit_path(x, y, 4, PROBLEMS[0], class_weights=factors, tolerance=1e-10), strict=True
    ):
        oracle = LogisticRegression(
            C=1 / l2, max_iter=10_000, tol=1e-10, class_weight=dict(enumerate(factors.tolist()))
        )
        oracle.fit(scaler.transform(x), y)
        wanted = torch.from_numpy(oracle.decision_function(scaler.transform(x)))
        found = scores(x, (weight[0], bias[0]))
        torch.testing.assert_close(found.softmax(1), wanted.softmax(1), rtol=0, atol=2e-4)

        def loss(logits: torch.Tensor, own: torch.Tensor, l2: float = l2) -> float:
            fitted = torch.nn.functional.cross_entropy(logits, y, factors, reduction="sum")
            return float(fitted + l2 / 2 * own.square().sum())

        own = weight[0] * torch.from_numpy(scaler.scale_)
        assert loss(found, own) <= loss(wanted, torch.from_numpy(oracle.coef_)) * (1 + 1e-7)


def test_the_quick_probe_loses_nothing_that_matters() -> None:
    x = features(300, 60)
    y = classes(x)
    for l2, (weight, bias) in zip(STRENGTHS, fit_path(x.float(), y, 4, PROBLEMS[0]), strict=True):
        exact = scores(x, fit_linear(x, y, 4, PROBLEMS[0], l2)).softmax(1)
        quick = scores(x.float(), (weight[0], bias[0])).softmax(1).double()
        assert float((quick - exact).abs().mean()) < 2e-3
        assert float((quick.argmax(1) == exact.argmax(1)).double().mean()) > 0.98


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_fold_is_the_fit_of_its_images_alone(problem: str) -> None:
    """With the standardisation of all images, which folds share."""
    x = features(60, 12)
    z = (x - x.mean(0)) / x.std(0, correction=0).where(x.std(0) > 1e-6, torch.ones(13).double())
    y = {PROBLEMS[0]: classes(x, 3), PROBLEMS[1]: (z[:, :3] > 0.3).double(), PROBLEMS[2]: z[:, :3] * 2 + 7}[problem]
    fold = torch.arange(60) % 3
    used = fold != torch.arange(3)[:, None]
    fits = list(fit_path(x, y, 3, problem, (10.0, 1.0), used=used, tolerance=1e-12))
    for index in range(3):
        seen = used[index]
        for l2, (weight, bias) in zip((10.0, 1.0), fits, strict=True):
            found = scores(x, (weight[index], bias[index])).numpy()
            if problem == PROBLEMS[2]:
                oracle = Ridge(alpha=l2).fit(z[seen], y[seen])
                np.testing.assert_allclose(found, oracle.predict(z), atol=1e-8)
            elif problem == PROBLEMS[1]:
                for label in range(3):
                    one = LogisticRegression(C=1 / l2, max_iter=10_000, tol=1e-10).fit(z[seen], y[seen, label])
                    np.testing.assert_allclose(found[:, label], one.decision_function(z), atol=2e-3)
            else:
                one = LogisticRegression(C=1 / l2, max_iter=10_000, tol=1e-10).fit(z[seen], y[seen])
                shares = torch.from_numpy(found).softmax(1).numpy()
                np.testing.assert_allclose(shares, one.predict_proba(z), atol=2e-4)


def test_ridge_in_numpy() -> None:
    x = features(40, 8)
    y = torch.randn(40, 2, generator=DRAW).double() + 3
    weight, bias = fit_linear(x, y, 2, PROBLEMS[2], 2.5)
    own = x.numpy()
    scale = np.where(own.std(0) > 1e-6, own.std(0), 1)
    z = (own - own.mean(0)) / scale
    solved = np.linalg.solve(z.T @ z + 2.5 * np.eye(9), z.T @ (y.numpy() - y.numpy().mean(0)))
    np.testing.assert_allclose(own @ weight.numpy().T + bias.numpy(), z @ solved + y.numpy().mean(0), atol=1e-9)


def test_a_class_that_a_fold_has_not_seen_never_wins_there() -> None:
    x = features(40, 6)
    y = torch.arange(40) % 3
    y[0] = 3  # one image
    used = torch.ones(2, 40, dtype=torch.bool)
    used[0, 0] = False
    for weight, bias in fit_path(x, y, 5, PROBLEMS[0], used=used):
        first, second = (scores(x, (weight[t], bias[t])) for t in (0, 1))
        assert not weight[0, 3:].any() and not weight[1, 4].any() and weight[1, 3].any()
        assert (first.argmax(1) < 3).all() and (second.argmax(1) < 4).all()


def test_a_label_of_all_or_no_images_gets_a_bias_alone() -> None:
    x = features(20, 5)
    y = torch.stack((torch.ones(20), torch.zeros(20), (torch.arange(20) % 2).float()), 1)
    weight, bias = fit_linear(x, y, 3, PROBLEMS[1], 1.0)
    assert not weight[:2].any() and weight[2].any()
    assert bias[:2].tolist() == pytest.approx([np.log(20.5 / 0.5), np.log(0.5 / 20.5)])


def test_one_class_is_refused() -> None:
    with pytest.raises(GatedPromptError, match=r"all 5 images are of class 1. Expected two classes"):
        fit_linear(torch.randn(5, 3), torch.ones(5, dtype=torch.int64), 2, PROBLEMS[0], 1.0)
