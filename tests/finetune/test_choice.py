"""How train_images.py measures, races and chooses: numbers against scikit-learn, and what decides between equals."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score

from gated_prompt import GatedPromptError
from gated_prompt.finetune.best_epoch import BestEpoch
from gated_prompt.finetune.class_weights import balanced_weights
from gated_prompt.finetune.features import backbone_key
from gated_prompt.finetune.image_set import CLASSES, LABELS, NUMBERS, ImageSet
from gated_prompt.finetune.lr_search import budgets, grid
from gated_prompt.finetune.metrics import all_measures, main_measure
from gated_prompt.finetune.model_selection import choose
from gated_prompt.finetune.probing import (
    BlockResult,
    Probe,
    best_block,
    fit_probe,
    load_results,
    neighbour_scores,
    save_results,
)
from gated_prompt.finetune.runs import Run
from helpers.models import vit

NAMES = ("a", "b", "c")
DRAW = torch.Generator().manual_seed(0)


def some(problem: str, targets: torch.Tensor, names: tuple[str, ...] = NAMES) -> ImageSet:
    return ImageSet([None] * len(targets), targets, problem, names, "made here")  # type: ignore[list-item]


def test_measures_of_classes_are_those_of_scikit_learn() -> None:
    scores, targets = torch.randn(60, 3, generator=DRAW), torch.randint(3, (60,), generator=DRAW)
    found = all_measures(CLASSES, scores, targets, main_measure(CLASSES, "auto", 3), NAMES)
    said = scores.argmax(1)
    assert found["accuracy"] == pytest.approx(float((said == targets).double().mean()))
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(targets, said))
    assert found["macro_f1"] == pytest.approx(f1_score(targets, said, average="macro"))
    assert np.sum(found["confusion"]) == 60 and found["confusion"][0][0] == int(((targets == 0) & (said == 0)).sum())
    low, high = found["interval"]  # of 60 draws with this share: about two standard errors to each side
    error = np.sqrt(found["accuracy"] * (1 - found["accuracy"]) / 60)
    assert low == pytest.approx(found["accuracy"] - 1.96 * error, abs=0.03)
    assert high == pytest.approx(found["accuracy"] + 1.96 * error, abs=0.03)


def test_measures_of_labels_and_numbers() -> None:
    scores, targets = torch.randn(40, 3, generator=DRAW), (torch.rand(40, 3, generator=DRAW) < 0.4).float()
    found = all_measures(LABELS, scores, targets, main_measure(LABELS, "auto", 3), NAMES)
    assert found["mean_average_precision"] == pytest.approx(average_precision_score(targets, scores), abs=1e-5)
    measure = main_measure(NUMBERS, "auto", 1)
    assert measure(torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [3.0]])) == 0.5
    assert measure.gain(torch.tensor([[1.0]]), torch.tensor([[2.0]])) == -1
    with pytest.raises(GatedPromptError, match="is not for numbers; known: auto, mean_abs"):
        main_measure(NUMBERS, "accuracy", 1)


@pytest.mark.parametrize(("runs", "steps"), [(8, 24), (8, 500), (4, 100), (8, 23)])
def test_a_race_is_no_longer_than_one_full_run(runs: int, steps: int) -> None:
    rounds = budgets(runs, steps)
    assert sum(count * length for count, length in rounds) <= steps
    assert [count for count, _ in rounds] == ([] if steps < 24 and runs == 8 else [8, 4, 2] if runs == 8 else [4, 2])
    assert all(later == 2 * before for (_, before), (_, later) in pairwise(rounds))


def test_every_method_has_rates_to_race() -> None:
    assert [len(grid(method)) for method in ("gated", "zero_start", "lora", "full", "linear")] == [8, 8, 8, 8, 4]
    assert len(set(grid("gated"))) == 8


TARGETS = torch.tensor([0, 1, 2] * 10)
RIGHT = torch.nn.functional.one_hot(TARGETS).float()


def wrong(count: int) -> torch.Tensor:
    """Scores with so many mistakes."""
    return torch.cat((RIGHT[:count].roll(1, 1), RIGHT[count:]))


def probe(mistakes: int, block: int = 5) -> Probe:
    gain = 1 - mistakes / 30
    return Probe(block, 1.0, torch.zeros(3, 4), torch.zeros(3), wrong(mistakes), gain)


def run(method: str, seed: int, mistakes: int, best_epoch: int = 3) -> Run:
    record = {"method": method, "seed": seed, "gain": 1 - mistakes / 30, "best_epoch": best_epoch}
    return Run(Path(), record, wrong(mistakes))


def test_the_probe_stays_unless_something_beats_it() -> None:
    measure = main_measure(CLASSES, "auto", 3)
    equal = choose(probe(6), [run("gated", 0, 6)], TARGETS, measure)
    assert equal.run is None and "80.0 % accuracy on validation, as good as gated prompts (80.0 %)" in equal.sentence
    behind = choose(probe(6), [run("gated", 0, 9)], TARGETS, measure)
    assert behind.run is None and "better than gated prompts (70.0 %)" in behind.sentence
    assert choose(probe(6), [], TARGETS, measure).run is None
    ahead = choose(probe(6), [run("lora", 0, 7), run("gated", 0, 5), run("deep", 0, 6)], TARGETS, measure)
    assert ahead.run is None and ahead.sentence.startswith("Use the linear probe on block 5: 80.0 % accuracy on valid")
    assert ahead.sentence.count("within chance") == 1 and "Gated prompts reach 83.3 %, a lead" in ahead.sentence
    start = choose(probe(20), [run("gated", 0, 5, best_epoch=0)], TARGETS, measure)
    assert start.sentence.endswith("Its best epoch is the start: training added nothing to the fitted head.")
    far = choose(probe(20), [run("lora", 0, 2)], TARGETS, measure)
    assert far.method == "lora" and "within chance" not in far.sentence
    assert far.sentence.startswith("Use LoRA on block 5: 93.3 % accuracy on validation, where")


def test_the_sentence_says_where_lower_is_better() -> None:
    targets = torch.arange(30.0)[:, None]
    near, far = targets + 0.1, targets + 10
    measure = main_measure(NUMBERS, "auto", 1)
    worse = Probe(5, 1.0, torch.zeros(1, 4), torch.zeros(1), far, measure.gain(far, targets))
    one = Run(Path(), {"method": "lora", "seed": 0, "gain": measure.gain(near, targets), "best_epoch": 3}, near)
    said = choose(worse, [one], targets, measure).sentence
    assert said == (
        "Use LoRA on block 5: mean absolute error 0.1 (lower is better) on validation, where the linear probe of the "
        "same block has 10."
    )


def test_the_mean_over_seeds_decides_and_the_best_seed_is_kept() -> None:
    runs = [run("gated", 0, 1), run("gated", 1, 9), run("deep", 0, 3), run("deep", 1, 2)]
    choice = choose(probe(20), runs, TARGETS, main_measure(CLASSES, "auto", 3))
    assert choice.method == "deep" and choice.run is runs[3]


def test_of_equal_blocks_the_lowest_is_read(tmp_path: Path) -> None:
    results = [BlockResult(block, 0.5, probe(mistakes, block), 0.0) for block, mistakes in enumerate((9, 4, 4, 8))]
    assert best_block(results).block == 1
    save_results(tmp_path / "probes.safetensors", results)
    again = load_results(tmp_path / "probes.safetensors")
    assert [(r.block, r.probe.gain) for r in again] == [(r.block, r.probe.gain) for r in results]
    assert torch.equal(again[1].probe.scores, results[1].probe.scores)


@pytest.mark.parametrize("problem", [CLASSES, LABELS, NUMBERS])
def test_probe_and_neighbours_find_what_is_there(problem: str) -> None:
    x = torch.randn(90, 6, generator=DRAW)
    truth = {CLASSES: x[:, :3].argmax(1), LABELS: (x[:, :3] > 0).float(), NUMBERS: 5 + 2 * x[:, :1]}[problem]
    names = NAMES if problem != NUMBERS else ("size",)
    data, measure = some(problem, truth[:60], names), main_measure(problem, "auto", len(names))
    found = fit_probe(0, 100 * x[:60] + 7, 100 * x[60:] + 7, data, truth[60:], measure, None)
    chance = {CLASSES: 0.34, LABELS: 0.5, NUMBERS: -1.6}[problem]
    assert found.gain > {CLASSES: 0.85, LABELS: 0.95, NUMBERS: -0.1}[problem]
    torch.testing.assert_close(found.scores, (100 * x[60:] + 7) @ found.weight.T + found.bias)
    assert measure.gain(neighbour_scores(x[:60], x[60:], data), truth[60:]) > chance


def test_a_class_without_pictures_is_never_predicted_by_a_probe() -> None:
    x, targets = torch.randn(40, 4, generator=DRAW), torch.arange(40) % 2
    found = fit_probe(0, x, x, some(CLASSES, targets), targets, main_measure(CLASSES, "auto", 3), None)
    assert found.weight.shape == (3, 4) and (found.scores.argmax(1) != 2).all()


def test_balanced_weights() -> None:
    assert balanced_weights(some(CLASSES, torch.tensor([0, 0, 0, 1]))) == [4 / 9, 4 / 3, 1.0]
    assert balanced_weights(some(LABELS, torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0, 0]]))) == [0.5, 2.0, 1.0]
    with pytest.raises(GatedPromptError, match="these images have numbers"):
        balanced_weights(some(NUMBERS, torch.zeros(2, 1)))


def test_one_weight_changes_the_name_of_the_features() -> None:
    model = vit()
    before = backbone_key(model)
    assert backbone_key(vit()) == before
    model.classifier.bias.data[0] += 1e-6
    assert backbone_key(model) != before


def test_a_run_that_diverges_is_the_worst_and_breaks_nothing() -> None:
    model, scores = torch.nn.Linear(2, 1), [torch.tensor([[float("nan")]] * 3), torch.zeros(3, 1)]
    targets = torch.ones(3, 1)
    watch = BestEpoch(
        model, lambda: scores.pop(0), torch.nn.functional.mse_loss, targets, main_measure(NUMBERS, "auto", 1), 5, None
    )
    watch.after_epoch(0)
    assert watch.gain == -np.inf and watch.curve[0]["loss"] == np.inf
    watch.restore()  # there are weights to go back to
    watch.after_epoch(1)
    assert (watch.gain, watch.best) == (-1, 1)
