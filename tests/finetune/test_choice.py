"""How train_images.py measures, races and chooses: numbers against scikit-learn, and what decides between equals."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score
from torch.utils.data import TensorDataset

from gated_prompt import GatedPromptError
from gated_prompt.finetune.division import Division, Parts
from gated_prompt.finetune.experiment import KeptTokens
from gated_prompt.finetune.features import backbone_key
from gated_prompt.finetune.image_experiment import ImageExperiment
from gated_prompt.finetune.image_set import MULTI_LABEL, REGRESSION, SINGLE_LABEL, ImageSet
from gated_prompt.finetune.metrics import all_measures, balanced_weights, main_measure, wilson
from gated_prompt.finetune.probing import fit_candidate, fit_kept, load_study, neighbour_scores, save_study, study
from gated_prompt.finetune.results import choose
from gated_prompt.finetune.runs import Run, budgets, grid
from gated_prompt.training.best_epoch import BestEpoch, Validation
from helpers.models import vit

NAMES = ("a", "b", "c")
DRAW = torch.Generator().manual_seed(0)


def some(problem: str, targets: torch.Tensor, names: tuple[str, ...] = NAMES) -> ImageSet:
    return ImageSet([None] * len(targets), targets, problem, names, "made here")  # type: ignore[list-item]


def test_measures_of_classes_are_those_of_scikit_learn() -> None:
    scores, targets = torch.randn(60, 3, generator=DRAW), torch.randint(3, (60,), generator=DRAW)
    found = all_measures(SINGLE_LABEL, scores, targets, main_measure(SINGLE_LABEL, "auto", 3), NAMES)
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
    found = all_measures(MULTI_LABEL, scores, targets, main_measure(MULTI_LABEL, "auto", 3), NAMES)
    assert found["mean_average_precision"] == pytest.approx(average_precision_score(targets, scores), abs=1e-5)
    measure = main_measure(REGRESSION, "auto", 1)
    assert measure(torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [3.0]])) == 0.5
    assert measure.score_to_maximize(torch.tensor([[1.0]]), torch.tensor([[2.0]])) == -1
    with pytest.raises(GatedPromptError, match=r"is not for numbers. Choose from: auto, mean_abs"):
        main_measure(REGRESSION, "accuracy", 1)


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


def run(method: str, seed: int, mistakes: int, best_epoch: int = 3) -> Run:
    record = {"method": method, "seed": seed, "score_to_maximize": 1 - mistakes / 30, "best_epoch": best_epoch}
    return Run(Path(), record, wrong(mistakes))


def test_the_probe_stays_unless_something_beats_it() -> None:
    measure = main_measure(SINGLE_LABEL, "auto", 3)
    equal = choose((5,), wrong(6), [run("gated", 0, 6)], TARGETS, measure)
    assert equal.run is None and "80.0 % accuracy on validation, as good as gated prompts (80.0 %)" in equal.sentence
    behind = choose((5,), wrong(6), [run("gated", 0, 9)], TARGETS, measure)
    assert behind.run is None and "better than gated prompts (70.0 %)" in behind.sentence
    assert choose((5,), wrong(6), [], TARGETS, measure).run is None
    ahead = choose((5,), wrong(6), [run("lora", 0, 7), run("gated", 0, 5), run("deep", 0, 6)], TARGETS, measure)
    assert ahead.run is None and ahead.sentence.startswith("Use the linear probe on block 5: 80.0 % accuracy on valid")
    assert ahead.sentence.count("within chance") == 1 and "Gated prompts reach 83.3 %, a lead" in ahead.sentence
    start = choose((5,), wrong(20), [run("gated", 0, 5, best_epoch=0)], TARGETS, measure)
    assert start.sentence.endswith("Its best epoch is the start: training added nothing to the fitted head.")
    far = choose((5,), wrong(20), [run("lora", 0, 2)], TARGETS, measure)
    assert far.method == "lora" and "within chance" not in far.sentence
    assert far.sentence.startswith("Use LoRA on block 5: 93.3 % accuracy on validation, where")


def test_the_sentence_says_where_lower_is_better() -> None:
    targets = torch.arange(30.0)[:, None]
    near, far = targets + 0.1, targets + 10
    measure = main_measure(REGRESSION, "auto", 1)
    one = Run(
        Path(),
        {"method": "lora", "seed": 0, "score_to_maximize": measure.score_to_maximize(near, targets), "best_epoch": 3},
        near,
    )
    said = choose((5,), far, [one], targets, measure).sentence
    assert said == (
        "Use LoRA on block 5: mean absolute error 0.1 (lower is better) on validation, where the linear probe there "
        "has 10."
    )


def test_the_mean_over_seeds_decides_and_the_best_seed_is_kept() -> None:
    runs = [run("gated", 0, 1), run("gated", 1, 9), run("deep", 0, 3), run("deep", 1, 2)]
    choice = choose((5,), wrong(20), runs, TARGETS, main_measure(SINGLE_LABEL, "auto", 3))
    assert choice.method == "deep" and choice.run is runs[3]


def folds(data: ImageSet, count: int = 3) -> Division:
    return Division(data, torch.arange(len(data)) % count, refit=True)


def test_of_equals_fewer_and_lower_blocks_are_read(tmp_path: Path) -> None:
    """Blocks 1 and 2 know everything, the others nothing."""
    targets = torch.arange(60) % 3
    known, noise = torch.nn.functional.one_hot(targets).float(), torch.randn(4, 60, 3, generator=DRAW)
    features = [noise[0], known, known, noise[3]]
    division, measure = folds(some(SINGLE_LABEL, targets), 4), main_measure(SINGLE_LABEL, "auto", 3)

    def of(blocks: Sequence[int]) -> torch.Tensor:
        return torch.cat([features[block] for block in blocks], 1)

    done = study(of, 4, range(4), True, division, measure, None, False)
    assert done.chosen.blocks == (1,) and done.chosen.value == 1
    assert [one.blocks for one in done.candidates] == [(0,), (1,), (2,), (3,), (0, 1, 2)]
    assert done.neighbours[1] == 1 and max(done.neighbours[0], done.neighbours[3]) < 0.7
    save_study(tmp_path / "probes.safetensors", done)
    again = load_study(tmp_path / "probes.safetensors")
    assert again.chosen.blocks == (1,) and torch.equal(again.weight, done.weight)
    assert [(one.l2, one.score_to_maximize) for one in again.candidates] == [
        (one.l2, one.score_to_maximize) for one in done.candidates
    ]
    assert torch.equal(again.candidates[3].scores, done.candidates[3].scores)


def test_several_blocks_are_read_where_they_know_more() -> None:
    """Each of three blocks tells one class from the others."""
    targets = torch.randint(3, (90,), generator=DRAW)  # folds of every class
    parts = [(targets == label).float()[:, None] + 0.1 * torch.randn(90, 4, generator=DRAW) for label in range(3)]
    division, measure = folds(some(SINGLE_LABEL, targets)), main_measure(SINGLE_LABEL, "auto", 3)

    def of(blocks: Sequence[int]) -> torch.Tensor:
        return torch.cat([parts[block] for block in blocks], 1)

    done = study(of, 3, range(3), True, division, measure, None, False)
    assert done.chosen.blocks == (0, 1, 2) and done.weight.shape == (3, 12)


@pytest.mark.parametrize("problem", [SINGLE_LABEL, MULTI_LABEL, REGRESSION])
def test_probe_and_neighbours_find_what_is_there(problem: str) -> None:
    x = torch.randn(120, 6, generator=DRAW)
    truth = {SINGLE_LABEL: x[:, :3].argmax(1), MULTI_LABEL: (x[:, :3] > 0).float(), REGRESSION: 5 + 2 * x[:, :1]}[
        problem
    ]
    names = NAMES if problem != REGRESSION else ("size",)
    division, measure = folds(some(problem, truth, names)), main_measure(problem, "auto", len(names))
    found = fit_candidate((0,), 100 * x + 7, division, measure, None)
    chance = {SINGLE_LABEL: 0.34, MULTI_LABEL: 0.5, REGRESSION: -1.7}[problem]
    assert found.score_to_maximize > {SINGLE_LABEL: 0.85, MULTI_LABEL: 0.95, REGRESSION: -0.2}[problem]
    weight, bias = fit_kept(found, 100 * x + 7, division, None)
    kept = (100 * x + 7) @ weight.T + bias
    assert measure.score_to_maximize(kept, truth) >= found.score_to_maximize - 0.02
    assert measure.score_to_maximize(neighbour_scores(x, division), truth) > chance


def test_no_image_is_scored_by_a_fit_that_saw_it() -> None:
    """Labels are drawn by lot: what is out of fold knows nothing, though each fit knows its own images by heart."""
    x, targets = torch.randn(60, 100, generator=DRAW), torch.randint(3, (60,), generator=DRAW)
    division, measure = folds(some(SINGLE_LABEL, targets), 5), main_measure(SINGLE_LABEL, "auto", 3)
    found = fit_candidate((0,), x, division, measure, None)
    assert found.value < 0.6
    weight, bias = fit_kept(replace(found, l2=0.1), x, division, None)
    assert measure(x @ weight.T + bias, targets) > 0.95
    assert measure(neighbour_scores(x, division), targets) < 0.6


def test_the_folds_of_a_training_part() -> None:
    train, validation = (
        some(SINGLE_LABEL, torch.tensor([0] * 40 + [1] * 8)),
        some(SINGLE_LABEL, torch.tensor([0] * 10 + [1] * 2)),
    )
    parts = Parts(train, validation, None, {}, held_back=True)
    division = Division.of(parts, 0.2, 0, refit=True)
    assert division.fold.bincount().tolist() == [12] * 5 and division.is_cross_validation
    assert [int((division.images.targets[division.fold == index] == 1).sum()) for index in range(5)] == [2] * 5
    assert division.validation.sum() == 12 and len(division.final) == 60
    single = Division.of(parts, 0.2, 0, refit=False)
    assert single.fold.tolist() == [-1] * 48 + [0] * 12 and single.final.tolist() == list(range(48))
    own = Division.of(Parts(train, validation, None, {}), 0.2, 0, refit=True)
    assert own.fold.tolist() == single.fold.tolist() and len(own.final) == 60


def test_a_class_without_pictures_is_never_predicted_by_a_probe() -> None:
    x, targets = torch.randn(40, 4, generator=DRAW), torch.arange(40) % 2
    division = folds(some(SINGLE_LABEL, targets))
    found = fit_candidate((0,), x, division, main_measure(SINGLE_LABEL, "auto", 3), None)
    assert found.scores.shape == (40, 3) and (found.scores.argmax(1) != 2).all()


def test_balanced_weights() -> None:
    assert balanced_weights(some(SINGLE_LABEL, torch.tensor([0, 0, 0, 1]))) == [4 / 9, 4 / 3, 1.0]
    assert balanced_weights(some(MULTI_LABEL, torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0, 0]]))) == [0.5, 2.0, 1.0]
    with pytest.raises(GatedPromptError, match="These images have numbers"):
        balanced_weights(some(REGRESSION, torch.zeros(2, 1)))


def test_one_weight_changes_the_name_of_the_features() -> None:
    model = vit()
    before = backbone_key(model)
    assert backbone_key(vit()) == before
    model.classifier.bias.data[0] += 1e-6
    assert backbone_key(model) != before


def test_a_run_that_diverges_is_the_worst_and_breaks_nothing() -> None:
    model, values = torch.nn.Linear(2, 1), [float("nan"), -1.0]
    watch = BestEpoch(model, lambda _: Validation(torch.zeros(3, 1), values.pop(0), {"loss": 1.0}), 5, None)
    watch.after_epoch(0)
    assert watch.score_to_maximize == -np.inf and watch.curve == [{"epoch": 0, "loss": 1.0}]
    watch.restore()  # there are weights to go back to
    watch.after_epoch(1)
    assert (watch.score_to_maximize, watch.best) == (-1, 1)


def test_a_loss_that_is_no_number_is_the_largest() -> None:
    """Of races that are equal the smaller loss wins."""
    part = some(REGRESSION, torch.ones(3, 1), ("size",))
    experiment = ImageExperiment(
        args=SimpleNamespace(per_device_eval_batch_size=3, dataloader_num_workers=0),
        prompts=None,
        accelerator=Accelerator(cpu=True),
        backbone=None,  # type: ignore[arg-type]
        predictor=None,
        blocks=(0,),
        parts=Parts(part, part, None, {}),
        division=folds(part),
        measure=main_measure(REGRESSION, "auto", 1),
        l2=1.0,
        class_weights=None,
    )
    pixels = TensorDataset(torch.full((3, 1), float("nan")), torch.ones(3, 1))
    validate = experiment.validation(KeptTokens(pixels, pixels))  # type: ignore[arg-type]
    found = validate(Answers())
    assert found.measures["loss"] == np.inf and np.isnan(found.score_to_maximize)


class Answers(torch.nn.Module):
    """Pixels are its logits."""

    def forward(self, pixels: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=pixels)


def test_the_interval_of_an_accuracy_is_wilson_s() -> None:
    """Values of Newcombe (1998), Table I, and the ends; of images that are all correct the interval has a width."""
    for (hits, count), wanted in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }.items():
        assert wilson(hits / count, count) == pytest.approx(wanted, abs=5e-5)
    scores = torch.eye(4).repeat(5, 1)
    found = all_measures(
        "single_label", scores, torch.arange(4).repeat(5), main_measure("single_label", "auto", 4), tuple("abcd")
    )
    assert found["interval"] == pytest.approx([1 - 0.1611, 1.0], abs=5e-5)
