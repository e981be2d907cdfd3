"""Images that cost much delay no others, and work that nobody waits for is dropped."""

import asyncio
import io
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gated_prompt import DataError
from gated_prompt.predictor import Predictor

pytest.importorskip("fastapi", reason="the server needs it: pip install -e '.[serve]'")

from gated_prompt.serving import uploads
from gated_prompt.serving.uploads import MEGAPIXEL, Client, ClientGoneError, Decoder, least_side, read_image

GREY = {"mean": [0.5] * 3, "std": [0.5] * 3}
SQUARE, CROP = GREY | {"size": 32, "antialias": True}, GREY | {"resize": 40, "crop": 32}


def encoded(width: int, height: int, kind: str = "PNG") -> bytes:
    """A smooth photo-like image."""
    rows, columns = np.mgrid[:height, :width] / max(width, height)
    pixels = np.stack([rows, columns, np.sin(9 * rows + 5 * columns) / 2 + 0.5], -1)
    file = io.BytesIO()
    Image.fromarray((255 * pixels).astype(np.uint8)).save(file, kind, quality=95)
    return file.getvalue()


def black(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("preparation", [SQUARE, CROP])
def test_a_jpeg_is_decoded_smaller_and_says_the_same(preparation: dict[str, object]) -> None:
    """The pixels after preparation are those of the whole image, within a grey level or two."""
    predictor, data = Predictor(["a"], preparation), encoded(1600, 1200, "JPEG")
    image = read_image(data, MEGAPIXEL * 2, least_side(predictor))
    assert image.size == (200, 150)
    whole = predictor.transform()(read_image(data, MEGAPIXEL * 2))
    assert (predictor.transform()(image) - whole).abs().max() < 3 / 127.5


def test_where_single_pixels_are_read_nothing_is_decoded_smaller() -> None:
    assert least_side(Predictor(["a"], SQUARE | {"antialias": False})) is None
    assert read_image(encoded(1600, 1200, "JPEG"), MEGAPIXEL * 2).size == (1600, 1200)


def test_the_limit_holds_the_photos_of_phones() -> None:
    most = int(12 * MEGAPIXEL)
    assert most >= 4032 * 3024
    with pytest.raises(DataError, match="has 5000 x 5000 pixels"):
        read_image(black(5000, 5000), most)
    with pytest.raises(DataError, match="One side may be at most 20 times"):
        read_image(black(2100, 100), most)


def test_small_images_overtake_large_ones_and_one_of_each_runs_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running, most_at_once, order, lock = [], [], [], threading.Lock()
    monkeypatch.setattr(uploads, "SMALL", 100 * 100)

    def slowly(data: bytes, most: int, side: int | None) -> Image.Image:
        image = Image.open(io.BytesIO(data))
        with lock:
            running.append(image.width)
            most_at_once.append(sorted(running))
        time.sleep(0.05 if image.width > 100 else 0.001)
        with lock:
            running.remove(image.width)
            order.append(image.width)
        return image.convert("RGB")

    monkeypatch.setattr(uploads, "read_image", slowly)
    decoder, predictor = Decoder(MEGAPIXEL), Predictor(["a"], SQUARE)

    async def both() -> None:
        large = [decoder.prepare(encoded(300, 300), predictor, Client()) for _ in range(6)]
        small = [decoder.prepare(encoded(50, 50), predictor, Client()) for _ in range(6)]
        await asyncio.gather(*large, *small)

    asyncio.run(both())
    assert order[-2:] == [300, 300]  # the small ones came last and waited for none of the six
    assert all(len(set(widths)) == len(widths) for widths in most_at_once)


def test_what_is_queued_for_clients_that_have_gone_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded, busy = [], threading.Event()

    def wait(data: bytes, most: int, side: int | None) -> Image.Image:
        busy.wait(5)
        decoded.append(data)
        return Image.open(io.BytesIO(data)).convert("RGB")

    monkeypatch.setattr(uploads, "read_image", wait)
    decoder, predictor, clients = Decoder(MEGAPIXEL), Predictor(["a"], SQUARE), [Client() for _ in range(8)]

    async def all_but_one_leave() -> list[object]:
        tasks = [asyncio.ensure_future(decoder.prepare(encoded(40, 40), predictor, client)) for client in clients]
        await asyncio.sleep(0.05)
        for client in clients[1:]:
            client.gone = True
        busy.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, *others = asyncio.run(all_but_one_leave())
    assert tuple(first.shape) == (3, 32, 32)
    assert [type(other) for other in others] == [ClientGoneError] * 7
    assert len(decoded) == 1


@pytest.mark.parametrize("data", [b"", b"GIF89a", Path(__file__).read_bytes()])
def test_what_is_no_image_is_refused_in_the_small_lane(data: bytes) -> None:
    assert uploads.number_of_pixels(data) == 0
    with pytest.raises(DataError, match="that was sent cannot be decoded"):
        asyncio.run(Decoder(MEGAPIXEL).prepare(data, Predictor(["a"], SQUARE), Client()))
