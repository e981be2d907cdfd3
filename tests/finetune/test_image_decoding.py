"""One function reads pictures: 16-bit grey keeps its levels, photos stand upright, odd kinds have their colours."""

import io
import os
import re
import struct
import warnings
from pathlib import Path

import datasets
import numpy as np
import pytest
from peft import get_peft_model
from PIL import Image, ImageOps

from gated_prompt import GatedPromptConfig, model_card
from gated_prompt.data.hub import HubImages, open_table
from gated_prompt.errors import DataError
from gated_prompt.images import EXTENSIONS, ImageFiles, decode, to_rgb
from helpers.models import vit

RAMP = np.tile(np.linspace(0, 255, 32, dtype=np.uint8), (32, 1))
COLOURS = np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)


def stored(image: Image.Image, kind: str, **settings: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def turned(orientation: int, kind: str = "PNG", image: Image.Image | None = None) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return stored(image or Image.fromarray(COLOURS), kind, exif=exif)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000", "TIFF big-endian"])
def test_grey_of_16_bits_keeps_its_levels(kind: str) -> None:
    kind, _, big = kind.partition(" ")
    deep = Image.fromarray((RAMP.astype(np.uint16) * 257).astype(">u2" if big else "<u2"))
    settings = {"irreversible": False} if kind == "JPEG2000" else {}
    found = np.asarray(decode(stored(deep, kind, **settings)))
    assert found.shape == (32, 32, 3) and found.dtype == np.uint8
    assert np.abs(found.astype(int) - RAMP[..., None]).max() == 0
    assert np.abs(np.asarray(to_rgb(deep)).astype(int) - RAMP[..., None]).max() == 0


def test_the_16_bit_scale_rounds() -> None:
    values = np.array([[0, 128, 129, 385, 386, 65406, 65407, 65535]], dtype=np.uint16)
    assert np.asarray(to_rgb(Image.fromarray(values)))[0, :, 0].tolist() == [0, 0, 1, 1, 2, 254, 255, 255]


@pytest.mark.parametrize(
    "pixels", [np.float32([[0.0, 0.5, 1.0]]), np.int32([[0, 70_000]]), np.int32([[-1, 5]])], ids=["float", "32", "-1"]
)
def test_pixels_without_a_known_white_are_refused(pixels: np.ndarray) -> None:
    data = stored(Image.fromarray(pixels), "TIFF")
    with pytest.raises(
        DataError,
        match=r"The image scan\.tif has .* pixels .* so the value of white is unknown. Save it with 8 or 16 bits",
    ):
        decode(data, "scan.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("deep", [False, True])
def test_photos_stand_upright_as_datasets_turns_them(orientation: int, deep: bool) -> None:
    image = Image.fromarray(COLOURS[..., 0].astype(np.uint16) * 257) if deep else Image.fromarray(COLOURS)
    data = turned(orientation, image=image)
    wanted = datasets.Image().decode_example({"bytes": data, "path": None})
    found = np.asarray(decode(data))
    stored_as = np.asarray(wanted)
    assert np.array_equal(found, (stored_as // 257)[..., None].repeat(3, 2) if deep else stored_as)
    assert found.shape[:2] == ((20, 40) if orientation < 5 else (40, 20))
    assert decode(data, upright=False).size == decode(data, as_stored=True).size == (40, 20)


def test_loaders_and_card_see_the_same_photo(tmp_path: Path) -> None:
    path = tmp_path / "train" / "cat" / "photo.jpg"
    path.parent.mkdir(parents=True)
    path.write_bytes(turned(6, "JPEG"))
    (tmp_path / "train" / "dog").mkdir()
    (tmp_path / "train" / "dog" / "other.jpg").write_bytes(turned(1, "JPEG"))
    table = open_table("pets", "train", path=tmp_path)
    wanted = np.asarray(datasets.load_dataset("imagefolder", data_dir=str(tmp_path), split="train")[0]["image"])
    base = vit(num_labels=2, id2label={0: "cat", 1: "dog"})
    card = model_card(get_peft_model(base, GatedPromptConfig(num_virtual_tokens=2)), base_model="me/vit")
    expression = re.search(r"processor\((.*), return_tensors", card.text)[1].replace('"photo.jpg"', repr(str(path)))
    seen = [
        HubImages([table], "image", [(0, 0)])[0],
        ImageFiles([path])[0],
        eval(expression, {"Image": Image, "ImageOps": ImageOps}),
    ]
    assert all(np.array_equal(np.asarray(image), wanted) for image in seen)
    assert ImageFiles([path], upright=False)[0].size == (40, 20)


def test_cmyk() -> None:
    image = Image.fromarray(COLOURS).convert("CMYK")
    assert np.array_equal(np.asarray(decode(stored(image, "TIFF"))), COLOURS)
    data = stored(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    assert np.abs(np.asarray(decode(data)).astype(int) - [255, 0, 0]).max() <= 3


def test_a_palette_with_transparency_has_its_stored_colours() -> None:
    image = Image.fromarray((np.arange(16) % 2).reshape(4, 4).astype(np.uint8), "P")
    image.putpalette([250, 10, 20, 30, 240, 50])
    data = stored(image, "PNG", transparency=bytes([0, 128]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = np.asarray(decode(data))
    assert found[0, :2].tolist() == [[250, 10, 20], [30, 240, 50]]
    see_through = stored(Image.new("RGBA", (2, 2), (1, 2, 3, 0)), "PNG")
    assert np.asarray(decode(see_through))[0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_read(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    data = stored(frames[0], kind, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert np.abs(np.asarray(decode(data)).astype(int) - [255, 0, 0]).max() <= 6


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGBA", "YCbCr", "HSV", "RGBX"])
def test_other_modes(mode: str) -> None:
    image = Image.new("RGB", (4, 4), (255, 255, 255)).convert(mode)
    assert np.abs(np.asarray(to_rgb(image)).astype(int) - 255).max() <= 1


def test_messages_name_the_picture(tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(turned(1)[:200])
    with pytest.raises(DataError, match=rf"{tmp_path}/cut.png cannot be decoded"):
        decode(tmp_path / "cut.png")
    with pytest.raises(DataError, match="in memory cannot be decoded"):
        decode(b"nothing")
    with pytest.raises(DataError, match=r"missing\.png is missing"):
        decode(str(tmp_path / "missing.png"))


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF with these entries: tag, type, count and four bytes."""
    packed = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + packed + struct.pack("<I", 0)


ORIENTATION = (0x0112, 3, 1, struct.pack("<HH", 6, 0))


@pytest.mark.parametrize("odd", [(0x0100, 2, 4, b"640\0"), (0x011A, 7, 3, b"abc\0")])
def test_a_photo_with_an_odd_tag_stands_upright(odd: tuple[int, int, int, bytes]) -> None:
    data = stored(Image.fromarray(COLOURS), "JPEG", exif=exif(odd, ORIENTATION))
    assert decode(data).size == (20, 40)


def test_exif_after_the_pixels_of_a_png() -> None:
    data = turned(6)
    place, end = data.index(b"eXIf") - 4, data.index(b"IDAT") - 4
    late = data[:place] + data[end:-12] + data[place:end] + data[-12:]
    assert late.index(b"IDAT") < late.index(b"eXIf") and len(late) == len(data)
    assert np.array_equal(np.asarray(decode(late)), np.asarray(decode(data)))


@pytest.mark.parametrize("error", [struct.error("cut"), TypeError("odd"), ZeroDivisionError(), RecursionError()])
def test_whatever_a_decoder_raises_means_that_the_picture_cannot_be_read(error: Exception, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    with pytest.raises(DataError, match=rf"photo\.png cannot be decoded: {str(error) or type(error).__name__}\."):
        decode(turned(1), "photo.png")


def test_a_strip_that_no_resizing_can_hold_is_refused() -> None:
    with pytest.raises(DataError, match=r"has 1 x 40000 pixels. One side is more than 200 times the other"):
        decode(stored(Image.new("RGB", (1, 40_000)), "PNG"), "strip.png")


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    path = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.png"))
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"caf\\xe9\.png cannot be decoded") as caught:
        decode(path)
    str(caught.value).encode()


def test_heic_is_read_or_says_what_it_needs() -> None:
    assert ".heic" in EXTENSIONS
    try:
        import pillow_heif
    except ImportError:
        with pytest.raises(DataError, match=r"photo\.HEIC cannot be decoded: HEIC needs pillow-heif: pip install"):
            decode(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200), "photo.HEIC")
        return
    photo = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (40, 20), (200, 40, 50))).save(photo)
    assert np.abs(np.asarray(decode(photo.getvalue())).astype(int) - (200, 40, 50)).max() < 6
