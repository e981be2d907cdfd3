"""The paper's preprocessing against numbers worked out by hand."""

import numpy as np
import pytest
import torch
from PIL import Image

from gated_prompt import transforms as pp
from gated_prompt.data.vtab import load_folder
from gated_prompt.errors import DataError
from gated_prompt.images import InexactDataWarning, LabelledImages, Provenance
from helpers.data_files import real_data

HALF = (0.5, 0.5, 0.5)


def image_of(values) -> Image.Image:
    """Grey RGB image with these rows."""
    return Image.fromarray(np.array(values, np.uint8)).convert("RGB")


def test_enlarging_interpolates_between_pixel_centres():
    pixels = pp.resize_to_square(image_of([[0, 100], [100, 200]]), 4)
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (3, 4, 4)
    assert pixels[0].tolist() == [[0, 25, 75, 100], [25, 50, 100, 125], [75, 100, 150, 175], [100, 125, 175, 200]]


def test_shrinking_samples_like_tensorflow_unless_antialiased():
    ramp = image_of([[0, 0, 200, 0, 0, 0, 0, 0]] * 8)
    # Centres of the two new columns fall on 1.5 and 5.5: the mean of columns 1 and 2, and of 5 and 6.
    assert pp.resize_to_square(ramp, 2)[0, 0].tolist() == [100, 0]
    spread = pp.resize_to_square(ramp, 2, antialias=True)[0, 0].tolist()
    pillow = np.asarray(ramp.resize((2, 2), Image.Resampling.BILINEAR))[0, :, 0].tolist()
    assert spread == pytest.approx(pillow, abs=1)
    assert spread[0] < 60


def test_vtab_transform_squeezes_without_cropping_and_normalises():
    wide = image_of([[0] * 30 + [255] * 30] * 10)
    out = pp.VtabTransform((0.5, 0.25, 0.0), (0.5, 0.25, 1.0), size=20)(wide)
    assert out.shape == (3, 20, 20)
    assert out[:, 0, 0].tolist() == [-1.0, -1.0, 0.0]
    assert out[:, 0, -1].tolist() == [1.0, 3.0, 1.0]
    assert (out[0] < 0).sum() == 200  # both halves are still there


def test_imagenet_statistics():
    out = pp.normalize(torch.full((3, 1, 1), 255, dtype=torch.uint8), pp.IMAGENET_MEAN, pp.IMAGENET_STD)
    assert out.flatten().tolist() == pytest.approx([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])


@pytest.mark.parametrize(
    ("size", "expected"), [((500, 375), (341, 256)), ((375, 500), (256, 341)), ((10, 10), (256, 256))]
)
def test_short_side(size, expected):
    assert pp.resize_short_side(Image.new("RGB", size), 256).size == expected


def columns(width=40, height=20) -> Image.Image:
    """Column x has the grey value x, so a crop shows where it was taken; resizing to 20 keeps the size."""
    return image_of([list(range(width))] * height)


def left_edges(transform, runs):
    return [(transform(columns())[0, 0] * 255).round().int().tolist() for _ in range(runs)]


def test_evaluation_takes_the_centre():
    transform = pp.FgvcTransform((0, 0, 0), (1, 1, 1), train=False, resize=20, crop=10)
    assert left_edges(transform, 2) == [list(range(15, 25))] * 2


def test_training_crops_everywhere_and_flips_half_of_the_time():
    torch.manual_seed(0)
    transform = pp.FgvcTransform((0, 0, 0), (1, 1, 1), train=True, resize=20, crop=10)
    rows = left_edges(transform, 1000)
    starts = {min(row) for row in rows}
    assert starts == set(range(31))  # both ends included
    assert all(sorted(row) == list(range(min(row), min(row) + 10)) for row in rows)
    flipped = sum(row[0] > row[-1] for row in rows)
    assert 430 < flipped < 570  # 4.4 standard deviations
    torch.manual_seed(0)
    assert left_edges(transform, 1000) == rows


def test_crop_larger_than_the_image_is_refused():
    with pytest.raises(DataError, match="crop of 224 does not fit into a short side of 200"):
        pp.FgvcTransform(HALF, HALF, train=True, resize=200)


def test_cache_gives_the_pixels_of_the_transform_and_decodes_once():
    class Counted:
        decoded = 0

        def __len__(self):
            return 3

        def __getitem__(self, index):
            self.decoded += 1
            return image_of([[index * 100, 50], [0, 255]])

        def name(self, index):
            return str(index)

    images = Counted()
    data = LabelledImages(images, [2, 0, 1], num_classes=3, provenance=Provenance("x", "s", "", None, True, "", 3, 3))
    transform = pp.VtabTransform(pp.IMAGENET_MEAN, pp.IMAGENET_STD, size=7)
    cached, streamed = pp.CachedImages(data, transform), pp.TransformedImages(data, transform)
    assert (cached.pixels.dtype, cached.pixels.shape) == (torch.uint8, (3, 3, 7, 7))
    decoded = images.decoded
    for _ in range(2):
        for index in range(3):
            pixels, label = cached[index]
            assert label == data.labels[index]
            assert torch.equal(pixels, pp.normalize(cached.pixels[index], pp.IMAGENET_MEAN, pp.IMAGENET_STD))
    assert images.decoded == decoded == 3
    assert all(torch.equal(cached[i][0], streamed[i][0]) for i in range(3))


def test_damaged_image_is_named_while_the_cache_is_filled(tmp_path):
    (tmp_path / "kitti" / "images").mkdir(parents=True)
    (tmp_path / "kitti" / "images" / "0.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "kitti" / "val200.txt").write_text("images/0.jpg 0\n")
    with pytest.warns(InexactDataWarning):
        data = load_folder(tmp_path, "kitti", "val200")
    with pytest.raises(DataError, match=r"images/0.jpg cannot be decoded"):
        pp.CachedImages(data, pp.VtabTransform(HALF, HALF))


def test_real_images_batch():
    with pytest.warns(InexactDataWarning):
        data = load_folder(real_data("vtab1k_layout_fixture"), "dtd", "val200")
    cached = pp.CachedImages(data, pp.VtabTransform(pp.IMAGENET_MEAN, pp.IMAGENET_STD))
    pixels, labels = next(iter(torch.utils.data.DataLoader(cached, batch_size=20)))
    assert pixels.shape == (20, 3, 224, 224)
    assert labels.tolist() == data.labels
    assert pixels.mean().abs() < 1
    assert 0.3 < pixels.std() < 2
