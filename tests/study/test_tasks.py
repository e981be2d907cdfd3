"""The images of the studies: what sprites show, sizes of the tasks, and what is missing."""

from pathlib import Path

import numpy as np
import pytest
import torch

from gated_prompt import GatedPromptError
from helpers.data_files import real_data
from study import tasks


@pytest.mark.parametrize(
    ("index", "position", "orientation"), [(0, 0, 0), (2, 0, 2), (9, 1, 1), (63, 7, 7), (64, 0, 0), (70, 0, 6)]
)
def test_labels_by_hand(index: int, position: int, orientation: int) -> None:
    assert tasks.sprite_label(index, "position") == position
    assert tasks.sprite_label(index, "orientation") == orientation


def ink(index: int) -> np.ndarray:
    """How much of each pixel the sprite covers, (32, 32), measured in the image alone."""
    picture = tasks.draw_sprite(index).astype(float)
    ground = np.median(picture, (0, 1))
    off = np.abs(picture - ground).sum(2)
    return off / off.max()


def test_pictures_show_their_position() -> None:
    """The mean column of the ink rises with the label (a triangle's centroid lies within 1 pixel of its centre)."""
    columns = np.arange(32) + 0.5
    for index in range(128):
        seen = (ink(index).sum(0) * columns).sum() / ink(index).sum()
        low = 7 + 18 / 8 * tasks.sprite_label(index, "position")
        assert low - 1.5 < seen < low + 18 / 8 + 1.5, index


def test_pictures_show_their_orientation() -> None:
    """The tip is the farthest ink from the centroid, and lies in the direction of the label."""
    down, across = np.mgrid[:32, :32] + 0.5
    for index in range(128):
        cover = ink(index)
        x, y = ((cover * axis).sum() / cover.sum() for axis in (across, down))
        arm = np.where(cover > 0.15, (across - x) + 1j * (y - down), 0)
        tip = arm.flat[np.abs(arm).argmax()]
        off = np.abs(np.angle(tip * np.exp(-0.25j * np.pi * tasks.sprite_label(index, "orientation"))))
        assert off < np.deg2rad(22.5), index


def test_pictures_are_the_same_everywhere() -> None:
    np.testing.assert_array_equal(tasks.draw_sprite(5), tasks.draw_sprite(5))
    assert not np.array_equal(tasks.draw_sprite(5), tasks.draw_sprite(69))  # same labels, another image
    assert tasks.draw_sprite(0).shape == (32, 32, 3)
    assert [int(tasks.draw_sprite(i).astype(int).sum()) for i in (0, 1, 63)] == SUMS


SUMS = [157177, 205340, 249681]


@pytest.mark.parametrize("name", tasks.FREE)
def test_tasks_have_their_sizes(name: str) -> None:
    task = tasks.load(f"mini_{name}", None)
    for part, size in tasks.MINI_SIZES.items():
        pixels, labels = task.parts[part].pixels, task.parts[part].labels
        assert pixels.shape == (size, 3, 32, 32)
        assert set(labels.tolist()) == set(range(task.num_classes))


@pytest.mark.parametrize("name", ["cifar10", "dtd10"])
def test_tasks_from_files_have_distinct_images(name: str) -> None:
    task = tasks.load(f"mini_{name}", real_data())
    every = torch.cat([part.pixels for part in task.parts.values()]).flatten(1)
    assert len(every) == 900
    assert len(torch.unique(every, dim=0)) > 890  # none shared by the parts, but for twins in the data themselves


def test_a_task_without_its_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(GatedPromptError, match="dtd10/images is missing"):
        tasks.load("mini_dtd10", tmp_path)
