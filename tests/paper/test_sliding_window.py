"""Sliding windows and several scales, on stand-in models whose answers are known by hand, and on a real one."""

import pytest
import torch
from torch import nn

from gated_prompt.segmentation.sliding_window import MULTI_SCALE, predict, window_logits, window_starts
from paper.segmentation.setr import SegmentationOutput, SetrPupForSemanticSegmentation


class Answer(nn.Module):
    """A model that answers `function` of a batch of windows."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.shapes = function, []

    def forward(self, pixels):
        self.shapes.append(tuple(pixels.shape))
        return SegmentationOutput(logits=self.function(pixels))


def mean_of_window(pixels):
    return pixels.mean(dim=(1, 2, 3))[:, None, None, None].expand(-1, 2, *pixels.shape[2:])


def test_window_starts() -> None:
    assert window_starts(512, 512, 341) == [0]
    assert window_starts(300, 512, 341) == [0]
    assert window_starts(513, 512, 341) == [0, 1]
    assert window_starts(853, 512, 341) == [0, 341]
    assert window_starts(854, 512, 341) == [0, 341, 342]
    assert window_starts(10, 4, 4) == [0, 4, 6]


@pytest.mark.parametrize("seed", range(20))
def test_windows_leave_no_gap_and_stay_inside(seed) -> None:
    draw = torch.Generator().manual_seed(seed)
    length, window = (int(torch.randint(1, 60, (), generator=draw)) for _ in range(2))
    stride = int(torch.randint(1, window + 1, (), generator=draw))
    starts = window_starts(length, window, stride)
    covered = {pixel for start in starts for pixel in range(start, start + min(window, length))}
    assert covered == set(range(length))
    assert len(set(starts)) == len(starts) <= -(-length // stride)


def test_one_window_is_the_whole_image(backbone) -> None:
    model = SetrPupForSemanticSegmentation(str(backbone), 5, [1], channels=4).eval()
    pixels = torch.randn(3, 30, 21)
    with torch.no_grad():
        assert torch.equal(window_logits(model, pixels, 32, 20, 4), model(pixels[None]).logits[0])
        probabilities = predict(model, pixels, short_side=21, window=32, stride=20, batch_size=1)
        torch.testing.assert_close(probabilities, model(pixels[None]).logits[0].softmax(0))


def test_overlaps_are_averaged() -> None:
    """Windows of 4 at 0, 2 and 3 of a row of 7; each pixel gets the mean over the windows that contain it."""
    row = torch.tensor([0.0, 1, 2, 3, 4, 5, 6])
    logits = window_logits(Answer(mean_of_window), row.expand(3, 4, 7), 4, 2, batch_size=8)
    a, b, c = 1.5, 3.5, 4.5
    wanted = torch.tensor([a, a, (a + b) / 2, (a + b + c) / 3, (b + c) / 2, (b + c) / 2, c])
    torch.testing.assert_close(logits, wanted.expand(2, 4, 7))


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_batch_size_changes_nothing(batch_size) -> None:
    model, pixels = Answer(mean_of_window), torch.randn(3, 23, 31)
    logits = window_logits(model, pixels, 8, 5, batch_size)
    assert {shape[1:] for shape in model.shapes} == {(3, 8, 8)}
    assert max(shape[0] for shape in model.shapes) == min(batch_size, 24)
    torch.testing.assert_close(logits, window_logits(Answer(mean_of_window), pixels, 8, 5, 24))


def test_image_is_scaled_and_the_answer_scaled_back() -> None:
    model = Answer(lambda x: x[:, :2])
    found = predict(model, torch.randn(3, 40, 60), short_side=20, window=100, stride=60, batch_size=1)
    assert found.shape == (2, 40, 60)
    assert model.shapes == [(1, 3, 20, 30)]


def test_scales_are_averaged_as_probabilities() -> None:
    """Logits that depend on the height alone: 8, 16 and 32 pixels at scales 0.5, 1 and 2."""

    def by_height(pixels):
        value = float(pixels.shape[2]) / 8
        return torch.tensor([value, 0.0]).view(1, 2, 1, 1).expand(len(pixels), 2, *pixels.shape[2:])

    how = {"short_side": 16, "window": 64, "stride": 64, "batch_size": 1}
    model = Answer(by_height)
    probabilities = predict(model, torch.randn(3, 16, 24), **how, scales=(0.5, 1.0, 2.0), flip=True)
    assert [shape[2:] for shape in model.shapes] == [(8, 12)] * 2 + [(16, 24)] * 2 + [(32, 48)] * 2
    wanted = torch.sigmoid(torch.tensor([1.0, 2.0, 4.0])).mean()
    torch.testing.assert_close(probabilities[0], wanted.expand(16, 24))
    torch.testing.assert_close(probabilities.sum(0), torch.ones(16, 24))


def test_mirror_image_is_mirrored_back() -> None:
    """A model that answers by the column makes of the two a symmetric map; one that answers by content, the same."""

    def by_column(pixels):
        ramp = torch.linspace(-2, 2, pixels.shape[3]).expand(len(pixels), 1, *pixels.shape[2:])
        return torch.cat((ramp, torch.zeros_like(ramp)), dim=1)

    how = {"short_side": 8, "window": 64, "stride": 64, "batch_size": 1}
    pixels = torch.randn(3, 8, 12)
    both = predict(Answer(by_column), pixels, **how, flip=True)
    torch.testing.assert_close(both, both.flip(-1))
    by_content = Answer(lambda x: x[:, :2])
    one, two = predict(by_content, pixels, **how), predict(by_content, pixels, **how, flip=True)
    torch.testing.assert_close(one, two)


def test_the_scales_are_mmsegmentations() -> None:
    assert MULTI_SCALE == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
