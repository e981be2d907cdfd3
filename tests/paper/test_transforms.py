"""The paper's preprocessing against numbers worked out by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gated_prompt import transforms as pp
from gated_prompt.data.vtab import load_folder
from gated_prompt.errors import DataError, RemovedNameError
from gated_prompt.images import InexactDataWarning, LabelledImages, Provenance
from helpers.data_files import real_data

HALF = (0.5, 0.5, 0.5)


def image_of(values) -> Image.Image:
    """Grey RGB image with these rows."""
    return Image.fromarray(np.array(values, np.uint8)).convert("RGB")


GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "tf_v1_resize.npz")  # TensorFlow's answers, see its README


@pytest.mark.parametrize("case", range(8))
def test_resize_gives_tensorflows_grey_levels(case):
    side, stride = map(int, GOLDEN[f"size_{case}"])
    image = Image.fromarray(GOLDEN[f"in_{case}"])
    for key, sampling in (("v1", "tf1"), ("v2", "half_pixel")):
        pixels = pp.resize_square(image, side, sampling)
        assert (pixels.dtype, pixels.shape) == (torch.float32, (3, side, side))
        wanted = torch.from_numpy(GOLDEN[f"{key}_{case}"]).permute(2, 0, 1)
        torch.testing.assert_close(pixels[:, ::stride, ::stride], wanted, rtol=0, atol=1e-3)


@pytest.mark.parametrize("case", range(8))
@pytest.mark.parametrize("turned", [False, True])
def test_the_vtab_path_is_the_official_arithmetic(tmp_path, case, turned):
    """From a file to the tensor of training: decode without turning, resize as TensorFlow 1, normalise; to 1e-5."""
    side, stride = map(int, GOLDEN[f"size_{case}"])
    (tmp_path / "kitti").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1  # the official loader ignores how the camera was held
    Image.fromarray(GOLDEN[f"in_{case}"]).save(tmp_path / "kitti" / "0.png", exif=exif)
    (tmp_path / "kitti" / "val200.txt").write_text("0.png 0\n")
    with pytest.warns(InexactDataWarning):
        data = load_folder(tmp_path, "kitti", "val200")
    cached = pp.CachedImages(data, pp.ResizeSquare(pp.IMAGENET_MEAN, pp.IMAGENET_STD, side))
    wanted = (GOLDEN[f"v1_{case}"].astype(np.float64) / 255 - pp.IMAGENET_MEAN) / pp.IMAGENET_STD
    found = cached[0][0][:, ::stride, ::stride].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_tf1_samples_where_the_picture_begins():
    # Columns 0, 0.5, 1, 1.5 of a picture two pixels wide, and nothing beyond the last pixel.
    pixels = pp.resize_square(image_of([[0, 100], [100, 200]]), 4)
    assert pixels[0].tolist() == [[0, 50, 100, 100], [50, 100, 150, 150], [100, 150, 200, 200], [100, 150, 200, 200]]
    half = pp.resize_square(image_of([[0, 100], [100, 200]]), 4, "half_pixel")
    assert half[0, 0].tolist() == [0, 25, 75, 100]


def test_antialias_averages_as_pillow_does():
    ramp = image_of([[0, 0, 200, 0, 0, 0, 0, 0]] * 8)
    assert pp.resize_square(ramp, 2)[0, 0].tolist() == [0, 0]
    assert pp.resize_square(ramp, 2, "half_pixel")[0, 0].tolist() == [100, 0]  # the centres of columns 1 and 2
    spread = pp.resize_square(ramp, 2, "antialias")[0, 0].tolist()
    pillow = np.asarray(ramp.resize((2, 2), Image.Resampling.BILINEAR))[0, :, 0].tolist()
    assert spread == pytest.approx(pillow, abs=1)
    assert spread[0] < 60
    with pytest.raises(DataError, match=r"sampling is 'bicubic'. Choose from: tf1, half_pixel, antialias"):
        pp.resize_square(ramp, 2, "bicubic")


def test_old_names_say_what_to_call_now():
    for name, now in (("VtabTransform", "ResizeSquare"), ("FgvcTransform", "ResizeCenterCrop")):
        with pytest.raises(
            RemovedNameError, match=f"transforms.{name} was removed: use gated_prompt.transforms.{now}"
        ):
            getattr(pp, name)
    assert not hasattr(pp, "nothing")


def test_resize_square_squeezes_without_cropping_and_normalises():
    wide = image_of([[0] * 30 + [255] * 30] * 10)
    out = pp.ResizeSquare((0.5, 0.25, 0.0), (0.5, 0.25, 1.0), size=20)(wide)
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
    transform = pp.ResizeCenterCrop((0, 0, 0), (1, 1, 1), train=False, resize=20, crop=10)
    assert left_edges(transform, 2) == [list(range(15, 25))] * 2


def test_training_crops_everywhere_and_flips_half_of_the_time():
    torch.manual_seed(0)
    transform = pp.ResizeCenterCrop((0, 0, 0), (1, 1, 1), train=True, resize=20, crop=10)
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
        pp.ResizeCenterCrop(HALF, HALF, train=True, resize=200)


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
    transform = pp.ResizeSquare(pp.IMAGENET_MEAN, pp.IMAGENET_STD, size=7)
    cached, streamed = pp.CachedImages(data, transform), pp.TransformedImages(data, transform)
    assert (cached.pixels.dtype, cached.pixels.shape) == (torch.float32, (3, 3, 7, 7))
    decoded = images.decoded
    for _ in range(2):
        for index in range(3):
            pixels, label = cached[index]
            assert label == data.labels[index]
            assert torch.equal(pixels, cached.pixels[index])
    assert images.decoded == decoded == 3
    assert all(torch.equal(cached[i][0], streamed[i][0]) for i in range(3))


def test_damaged_image_is_named_while_the_cache_is_filled(tmp_path):
    (tmp_path / "kitti" / "images").mkdir(parents=True)
    (tmp_path / "kitti" / "images" / "0.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "kitti" / "val200.txt").write_text("images/0.jpg 0\n")
    with pytest.warns(InexactDataWarning):
        data = load_folder(tmp_path, "kitti", "val200")
    with pytest.raises(DataError, match=r"images/0.jpg cannot be decoded"):
        pp.CachedImages(data, pp.ResizeSquare(HALF, HALF))


def test_real_images_batch():
    with pytest.warns(InexactDataWarning):
        data = load_folder(real_data("vtab1k_layout_fixture"), "dtd", "val200")
    cached = pp.CachedImages(data, pp.ResizeSquare(pp.IMAGENET_MEAN, pp.IMAGENET_STD))
    pixels, labels = next(iter(torch.utils.data.DataLoader(cached, batch_size=20)))
    assert pixels.shape == (20, 3, 224, 224)
    assert labels.tolist() == data.labels
    assert pixels.mean().abs() < 1
    assert 0.3 < pixels.std() < 2
