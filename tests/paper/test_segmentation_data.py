"""Segmentation tasks by name, and training crops: aligned with their labels, identical after resuming."""

import numpy as np
import pytest
import torch
from PIL import Image

from gated_prompt.errors import DataError
from gated_prompt.images import InexactDataWarning
from gated_prompt.segmentation.sliding_window import scaled_size
from helpers.data_files import real_data
from paper.segmentation.data import TrainingCrops, WholeImages, load_task, random_crop

COLOURS = np.array([[250, 20, 20], [20, 250, 20], [20, 20, 250]], dtype=np.uint8)


def blocks(width: int = 60, height: int = 40, side: int = 20) -> tuple[Image.Image, Image.Image]:
    """An image of coloured squares that shows its own label map."""
    y, x = np.mgrid[:height, :width] // side
    labels = ((x + 2 * y) % 3).astype(np.uint8)
    return Image.fromarray(COLOURS[labels]), Image.fromarray(labels)


class Pairs:
    def __init__(self, *pairs) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index):
        return self.pairs[index]


def test_scaled_size() -> None:
    assert scaled_size((683, 512), 512) == (683, 512)
    assert scaled_size((480, 360), 90) == (120, 90)
    assert scaled_size((300, 500), 150) == (150, 250)
    assert scaled_size((4000, 100), 512) == (2048, 51)  # the long side ends at 4 x 512, as in mmsegmentation
    assert scaled_size((3, 4000), 10) == (1, 40)


@pytest.mark.parametrize("seed", range(8))
def test_image_and_labels_stay_aligned(seed) -> None:
    image, mask = random_crop(*blocks(), 40, 32, np.random.default_rng(seed))
    assert image.size == mask.size
    pixels, labels = np.asarray(image), np.asarray(mask)
    pure = (np.sort(pixels)[..., 2] > 235) & (np.sort(pixels)[..., 1] < 35)  # not mixed at an edge
    assert pure.mean() > 0.6
    assert np.array_equal(pixels.argmax(-1)[pure], labels[pure])


def test_scale_crop_and_mirror_images_all_occur() -> None:
    ramp = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))).convert("RGB")
    flat = Image.new("L", (64, 64))
    rng = np.random.default_rng(0)
    slopes, starts, sizes = [], set(), set()
    for _ in range(60):
        image, mask = random_crop(ramp, flat, 64, 48, rng)
        row = np.asarray(image)[0, :, 0].astype(float)
        slopes.append((row[-1] - row[0]) / len(row) / 4)  # 1 / scale, negative when mirrored
        starts.add(row.min())
        sizes.add(mask.size)
    slopes = np.array(slopes)
    assert 20 <= (slopes < 0).sum() <= 40
    assert 0.45 < abs(slopes).min() < 0.6
    assert 1.6 < abs(slopes).max() < 2.1
    assert len(starts) > 20
    assert max(sizes) == (48, 48)
    assert min(sizes)[0] < 40  # images scaled to less than a crop stay smaller


def test_crops_with_more_than_one_class_are_preferred() -> None:
    labels = np.zeros((64, 64), dtype=np.uint8)
    labels[:, 48:] = 1
    labels[:24] = 255
    pair = Image.new("RGB", (64, 64)), Image.fromarray(labels)
    shares = []
    for seed in range(30):
        _, mask = random_crop(*pair, 64, 24, np.random.default_rng(seed))
        counts = np.bincount(np.asarray(mask).ravel(), minlength=256)[:255]
        shares.append(counts.max() / max(1, counts.sum()))
    assert np.mean(np.array(shares) < 0.75) > 0.8  # without drawing again, one crop in five


def test_crops_are_padded_and_ignored_there() -> None:
    crops = TrainingCrops(Pairs(blocks()), 1, 20, 64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), seed=0)
    pixels, labels = crops[0]
    assert pixels.shape == (3, 64, 64)
    assert labels.dtype == torch.int64
    height = int((labels[:, 0] != 255).sum())
    width = int((labels[0] != 255).sum())
    assert 0 < height < 64
    assert (labels[height:] == 255).all() and (labels[:, width:] == 255).all()
    assert (pixels[:, height:] == 0).all() and (pixels[:, :, width:] == 0).all()
    assert (labels[:height, :width] < 3).all()
    assert pixels[:, :height, :width].abs().max() <= 1


def test_crops_depend_on_seed_epoch_and_index_alone() -> None:
    data = Pairs(blocks(), blocks())
    one, two = (TrainingCrops(data, 2, 40, 24, (0.5,) * 3, (0.5,) * 3, seed=3) for _ in range(2))
    one[1], torch.rand(7), np.random.rand(3)  # what was drawn before does not matter
    for index in (0, 1):
        assert all(torch.equal(a, b) for a, b in zip(one[index], two[index], strict=True))
    first = one[0][0]
    assert not torch.equal(first, one[1][0])  # the same image, another crop
    one.epoch = 1
    assert not torch.equal(first, one[0][0])
    other = TrainingCrops(data, 2, 40, 24, (0.5,) * 3, (0.5,) * 3, seed=4)
    assert not torch.equal(first, other[0][0])


def test_whole_images_keep_their_sizes() -> None:
    data = WholeImages(Pairs(blocks(), blocks(50, 30)), (0.5,) * 3, (0.5,) * 3)
    assert [(tuple(p.shape), tuple(y.shape)) for p, y in (data[0], data[1])] == [
        ((3, 40, 60), (40, 60)),
        ((3, 30, 50), (30, 50)),
    ]


def write(root, split: str, stored: list[list[int]]) -> None:
    for kind in ("images", "annotations"):
        (root / kind / split).mkdir(parents=True, exist_ok=True)
    mask = Image.fromarray(np.array(stored, dtype=np.uint8))
    mask.save(root / "annotations" / split / "a.png")
    Image.new("RGB", mask.size).save(root / "images" / split / "a.jpg")


@pytest.mark.parametrize(("reduce", "ignored", "wanted"), [(False, 7, [0, 1, 2, 255]), (True, 7, [255, 0, 1, 255])])
def test_data_of_your_own(tmp_path, reduce, ignored, wanted) -> None:
    for split in ("training", "validation"):
        write(tmp_path, split, [[0, 1, 2, 7]])
    task = load_task("rooms", str(tmp_path), 3 - reduce, reduce, ignored)
    assert np.asarray(task.test[0][1]).tolist() == [wanted]
    assert task.class_names == ["0", "1", "2"][: 3 - reduce]
    assert task.train.provenance.dataset == "rooms"


def test_camvid() -> None:
    task = load_task("camvid", str(real_data("camvid_subset")))
    assert (len(task.train), len(task.test)) == (120, 40)
    assert task.class_names[3] == "road"
    labels = np.asarray(task.test[0][1])
    assert np.bincount(labels[-120:].ravel(), minlength=256)[:11].argmax() == 3  # what is below is road


def test_ade20k(tmp_path) -> None:
    root = real_data("ade20k_mini", "ADEChallengeData2016")
    for kind in ("images", "annotations"):
        (tmp_path / kind).mkdir()
        for split in ("training", "validation"):
            (tmp_path / kind / split).symlink_to(root / kind / "validation")
    with pytest.warns(InexactDataWarning):
        task = load_task("ade20k", str(tmp_path))
    assert (len(task.class_names), task.test.num_classes) == (150, 150)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("rooms",), "unknown task 'rooms'. Choose from: ade20k, camvid. For your own data, give --num_classes"),
        (("camvid", "x", 11), "the labels of camvid are built in. Leave out --num_classes"),
        (("camvid",), "camvid has no source on the Hub. Give --data_dir"),
        (("rooms", "x", 1), "--num_classes is 1. Expected 2 to 255"),
        (("rooms", "x", 256), "--num_classes is 256. Expected 2 to 255"),
        (("rooms", "x", 255, True), "--num_classes is 255. Expected 2 to 254"),
        (
            ("rooms", "x", 3, False, 2),
            "--ignore_label is 2, expected 0 to 255 outside the classes, which are 0 to 2",
        ),
        (("rooms", "x", 3, False, 256), "--ignore_label is 256"),
        (("rooms", "x", 3), "has no JPEGs"),
    ],
)
def test_faults(arguments, words) -> None:
    with pytest.raises(DataError, match=words):
        load_task(*arguments)
