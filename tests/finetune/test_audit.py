"""Planted label errors, duplicates and strangers are found, and the temperature is the one that was planted."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gated_prompt import GatedPromptError
from gated_prompt.finetune.audit import SUSPECT, SUSPECTS, label_suspects, near_duplicates, write_rows
from gated_prompt.finetune.calibration import confidence, fit_temperature
from gated_prompt.finetune.familiarity import Familiar, read_familiar
from gated_prompt.finetune.image_set import MULTI_LABEL, REGRESSION, SINGLE_LABEL, ImageSet, Picture

NAMES = ("birch", "oak", "pine")


def images(targets: Tensor, start: str = "image") -> ImageSet:
    pictures = [Picture(f"{start} {index}", lambda: b"") for index in range(len(targets))]
    return ImageSet(pictures, targets, SINGLE_LABEL, NAMES, "made")


def clusters(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features (N, 12) around one center for each class, and the classes."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.arange(count) % 3
    features = torch.randn(count, 12, generator=generator)
    features[:, :6] += 9 * F.one_hot(classes, 3).repeat(1, 2)
    return features, classes


def test_planted_label_errors_come_first() -> None:
    features, classes = clusters(90)
    wrong = {4: 2, 31: 0, 59: 1}
    given = classes.clone()
    for index, label in wrong.items():
        given[index] = label
    held = [index for index in range(90) if index % 10]  # not all images have a score
    scores = 8.0 * F.one_hot(classes[held], 3)
    scores[held.index(4)] *= 0.9  # the least suspect of the three
    rows = label_suspects(scores, held, images(given), features)
    assert [row["image"] for row in rows] == ["image 31", "image 59", "image 4"]
    first = rows[0]
    assert (first["label"], first["suggested"]) == (NAMES[wrong[31]], NAMES[int(classes[31])])
    assert first["label_probability"] < 0.2 and 0.6 < first["suggested_probability"] < 1
    places = [int(near["image"].split()[1]) for near in first["neighbours"]]
    assert len(places) == 3 and 31 not in places and set(classes[places].tolist()) == {int(classes[31])}
    assert label_suspects(8.0 * F.one_hot(given[held], 3), held, images(given), features) == []


def test_no_more_suspects_than_a_person_looks_at() -> None:
    features, classes = clusters(90)
    rows = label_suspects(4.0 * F.one_hot((classes + 1) % 3, 3), list(range(90)), images(classes), features)
    assert len(rows) == SUSPECTS


def test_a_planted_duplicate_is_found_and_its_class_mates_are_not() -> None:
    features, classes = clusters(60)
    test_features, test_classes = clusters(30, seed=1)
    noise = 0.02 * torch.randn(2, 12, generator=torch.Generator().manual_seed(2))
    test_features[7], test_features[12] = features[5] + noise[0], features[44] + 2 * noise[1]
    rows = near_duplicates(images(classes), features, images(test_classes, "test"), test_features)
    assert [(row["image"], row["labelled_image"]) for row in rows] == [
        ("test 7", "image 5"),
        ("test 12", "image 44"),
    ]
    assert rows[0]["labelled_label"] == NAMES[2] and 0 < rows[0]["relative_distance"] < rows[1]["relative_distance"]
    same = near_duplicates(images(classes), features, images(classes, "test"), features)
    assert len(same) == 60 and all(row["relative_distance"] < 0.02 for row in same)


def test_rows_in_a_file(tmp_path: Path) -> None:
    near = [{"image": f"n{i}", "label": "oak"} for i in range(2)]
    row = dict(zip(SUSPECT, ('a,"b".png', "oak", "pine", 0.1, 0.9, near), strict=True))
    write_rows(tmp_path / "rows.csv", [row], SUSPECT)
    (read,) = csv.DictReader((tmp_path / "rows.csv").read_text().splitlines())
    assert read["image"] == 'a,"b".png' and float(read["suggested_probability"]) == 0.9
    assert (read["neighbour_1"], read["neighbour_2_label"], read["neighbour_3"]) == ("n0", "oak", None)
    write_rows(tmp_path / "rows.csv", [], SUSPECT)
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 1


def test_the_temperature_is_the_planted_one() -> None:
    """Labels are drawn from the softmax of logits, which then are multiplied by 4: the temperature is near 4."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4000, 5, generator=generator)
    classes = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    assert fit_temperature(4 * logits, classes, SINGLE_LABEL) == pytest.approx(4, rel=0.1)
    labels = (torch.rand(4000, 5, generator=generator) < logits.sigmoid()).float()
    assert fit_temperature(0.5 * logits, labels, MULTI_LABEL) == pytest.approx(0.5, rel=0.1)
    assert fit_temperature(logits, labels, REGRESSION) == 1


def test_few_images_without_a_mistake_promise_no_certainty() -> None:
    """With N right of N the confidence is Platt's (N + 1) / (N + 2); guesses give the share of each class."""
    classes = torch.arange(10) % 2
    right = 3.0 * F.one_hot(classes, 2)
    shares = confidence(right.double(), fit_temperature(right, classes, SINGLE_LABEL), SINGLE_LABEL)
    assert float(shares.max(1).values.mean()) == pytest.approx(11 / 12, abs=1e-6)
    guesses = 30.0 * F.one_hot(torch.tensor([0, 1, 1, 0] * 2 + [0, 0]), 2)
    found = fit_temperature(guesses, torch.tensor([0, 0, 1, 1] * 2 + [0, 1]), SINGLE_LABEL)
    grid = np.geomspace(0.01, 100, 401)
    wanted = (F.one_hot(torch.tensor([0, 0, 1, 1] * 2 + [0, 1]), 2) * 10 / 12 + 1 / 12).double()
    losses = [float(-(wanted * (guesses.double() / one).log_softmax(1)).sum()) for one in grid]
    assert math.log(found) == pytest.approx(math.log(grid[int(np.argmin(losses))]), abs=0.03)


def test_strangers_are_unlike_and_unseen_images_of_a_class_are_not(tmp_path: Path) -> None:
    features, classes = clusters(300)
    seen = classes < 2
    Familiar.of(features[seen]).write(tmp_path)
    familiar = read_familiar(tmp_path)
    more, others = clusters(3000, seed=3)
    unlike = familiar.unlike(more)
    assert float(unlike[others == 2].min()) > 0.95  # the class that was held out
    assert float(unlike[others < 2].mean()) == pytest.approx(0.5, abs=0.1)
    assert float(unlike.min()) >= 0 and float(unlike.max()) <= 1


def test_a_folder_without_training_images(tmp_path: Path) -> None:
    with pytest.raises(GatedPromptError, match=r"--unlike needs. .* probe/ of a run"):
        read_familiar(tmp_path)
    (tmp_path / "familiar.safetensors").write_bytes(b"nothing")
    with pytest.raises(GatedPromptError, match="cannot be read"):
        read_familiar(tmp_path)
