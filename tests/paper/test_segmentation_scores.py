"""mIoU, mAcc and aAcc against scikit-learn, and by hand where classes are absent."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, jaccard_score
from torchmetrics.classification import MulticlassConfusionMatrix

from gated_prompt.errors import DataError
from gated_prompt.finetune.segmentation.scores import majority_score, score


def maps(seed: int, num_classes: int, absent: tuple[int, ...] = ()) -> tuple[np.ndarray, np.ndarray]:
    """True and predicted label maps of 6 images, with ignored pixels; predictions are right more often than not."""
    draw = np.random.default_rng(seed)
    classes = [label for label in range(num_classes) if label not in absent]
    truth = draw.choice(classes, (6, 9, 11))
    predicted = np.where(draw.random(truth.shape) < 0.6, truth, draw.choice(classes, truth.shape))
    truth[draw.random(truth.shape) < 0.15] = 255
    return truth, predicted


def confusion(truth: np.ndarray, predicted: np.ndarray, num_classes: int, batch: int) -> torch.Tensor:
    metric = MulticlassConfusionMatrix(num_classes, ignore_index=255, validate_args=False)
    for first in range(0, len(truth), batch):
        metric.update(*(torch.from_numpy(each[first : first + batch]) for each in (predicted, truth)))
    return metric.compute()


@pytest.mark.parametrize("absent", [(), (2,), (0, 5)])
@pytest.mark.parametrize("seed", range(3))
def test_scores_are_scikit_learns(seed, absent) -> None:
    truth, predicted = maps(seed, 7, absent)
    scores = score(confusion(truth, predicted, 7, batch=6))
    valid = truth != 255
    y, found = truth[valid], predicted[valid]
    assert scores.mean_iou == pytest.approx(jaccard_score(y, found, average="macro"), abs=1e-12)
    assert scores.mean_accuracy == pytest.approx(balanced_accuracy_score(y, found), abs=1e-12)
    assert scores.pixel_accuracy == pytest.approx(accuracy_score(y, found), abs=1e-12)
    by_class = jaccard_score(y, found, average=None, labels=range(7), zero_division=0)
    assert scores.iou == [None if label in absent else pytest.approx(by_class[label]) for label in range(7)]


def test_batch_size_changes_nothing() -> None:
    truth, predicted = maps(0, 7)
    wanted = score(confusion(truth, predicted, 7, batch=6))
    assert all(score(confusion(truth, predicted, 7, batch)) == wanted for batch in (1, 2, 5))
    by_image = [score(confusion(truth[i : i + 1], predicted[i : i + 1], 7, 1)).mean_iou for i in range(6)]
    assert np.mean(by_image) != pytest.approx(wanted.mean_iou, abs=1e-4)  # a mean over images would be another number


def test_class_that_is_predicted_but_not_there_counts_0() -> None:
    truth, predicted = np.array([[[0, 0, 1, 1]]]), np.array([[[0, 0, 1, 2]]])
    scores = score(confusion(truth, predicted, 4, 1))
    assert scores.iou == [1.0, 0.5, 0.0, None]
    assert scores.mean_iou == 0.5  # of three classes
    assert scores.mean_accuracy == 0.75  # of the two that are there
    assert scores.pixel_accuracy == 0.75


def test_ignored_pixels_count_nowhere() -> None:
    truth, predicted = np.array([[[0, 1, 255, 255]]]), np.array([[[0, 1, 2, 0]]])
    assert score(confusion(truth, predicted, 3, 1)).iou == [1.0, 1.0, None]


def test_majority_class() -> None:
    truth = np.array([[[0, 1, 1, 1, 3, 255, 255]]])
    scores = majority_score(confusion(truth, np.zeros_like(truth), 5, 1))
    assert scores.iou == [0.0, 0.6, None, 0.0, None]
    assert scores.mean_iou == pytest.approx(0.2)
    assert scores.mean_accuracy == pytest.approx(1 / 3)
    assert scores.pixel_accuracy == 0.6


def test_nothing_to_score() -> None:
    with pytest.raises(DataError, match="no pixel of the test images has a label"):
        score(torch.zeros(3, 3))
