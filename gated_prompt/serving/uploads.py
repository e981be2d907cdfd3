# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Untrusted uploads: read within limits of size and time, and made into pixels in two threads.

One thread is for small images and one for large ones. So at most one image of each kind is decoded at a time,
whatever arrives, and large images never delay small ones.
"""

import asyncio
import io
from collections.abc import Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import HTTPException, Request
from PIL import Image
from starlette.datastructures import UploadFile
from torch import Tensor

from ..errors import DataError
from ..images import decode
from ..predictor import Predictor
from ..transforms import ResizeCenterCrop, ResizeSquare

T = TypeVar("T")
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MEGAPIXEL = 2**20  # so that 12 of them hold the 4032 x 3024 pixels of many phones
SMALL = 2 * MEGAPIXEL  # pixels
SLENDER = 20  # longest side ratio: resizing the short side enlarges the long one in proportion
FINER = 3  # a JPEG is decoded at a fraction of its size that is this many times finer than what is needed


@dataclass(eq=False)
class Client:
    """Who waits for an answer. `gone`: nobody does any more, so that what is queued can be dropped.

    `prepared`: the pixels of the image by preparation, so that adapters which share one share the decoding.
    """

    gone: bool = False
    prepared: dict[str, asyncio.Task[Tensor]] = field(default_factory=dict)


class ClientGoneError(Exception):
    """Nobody waits for this work any more."""


class Decoder:
    """Decodes and prepares images of at most `most_pixels` pixels."""

    def __init__(self, most_pixels: int) -> None:
        self.most_pixels = most_pixels
        self.small, self.large = ThreadPoolExecutor(1, "small"), ThreadPoolExecutor(1, "large")

    async def prepare(self, data: bytes, predictor: Predictor, client: Client) -> Tensor:
        """The pixels of an upload, as this predictor's images were prepared in training.

        Raises:
            ClientGoneError: nobody waits for them.
            DataError: see `read_image`.
        """
        key = repr(sorted(predictor.preparation.items()))
        if key not in client.prepared:
            client.prepared[key] = asyncio.create_task(self._prepare(data, predictor, client))
        return await client.prepared[key]

    async def _prepare(self, data: bytes, predictor: Predictor, client: Client) -> Tensor:
        def read() -> Tensor:
            return predictor.transform()(read_image(data, self.most_pixels, least_side(predictor)))

        size = await run(self.small, client, lambda: number_of_pixels(data))
        return await run(self.small if size <= SMALL else self.large, client, read)


async def run(executor: ThreadPoolExecutor, client: Client, function: Callable[[], T]) -> T:
    """What a function returns in a thread of this executor; when its turn comes, somebody must still wait for it.

    Raises:
        ClientGoneError: nobody does.
    """

    def unless_gone() -> T:
        if client.gone:
            raise ClientGoneError
        return function()

    return await asyncio.get_running_loop().run_in_executor(executor, unless_gone)


def number_of_pixels(data: bytes) -> int:
    """What the head of an image says; 0 if it cannot be read, which `read_image` then explains."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.width * image.height
    except Exception:  # decoders raise many kinds
        return 0


def least_side(predictor: Predictor) -> int | None:
    """The side that an image must keep when it is decoded at a fraction of its size. None if each pixel counts.

    Sampling without averaging reads single pixels, which a fraction would have averaged.
    """
    transform = predictor.transform()
    if isinstance(transform, ResizeCenterCrop):
        return FINER * transform.resize
    averages = isinstance(transform, ResizeSquare) and transform.sampling == "antialias"
    return FINER * int(predictor.preparation["size"]) if averages else None


def read_image(data: bytes, most_pixels: int, side: int | None = None) -> Image.Image:
    """Decode an RGB image. A JPEG perhaps at 1/2, 1/4 or 1/8 of its size, but with no side shorter than `side`.

    Raises:
        DataError: it is no image, is damaged, is a strip, or has too many pixels, which is checked before decoding.
    """
    image = decode(data, "that was sent", formats=FORMATS, most_pixels=most_pixels, least_side=side)
    if max(image.size) > SLENDER * min(image.size):
        raise DataError(
            f"The image that was sent has {image.width} x {image.height} pixels. One side may be at most {SLENDER} "
            "times as long as the other. Crop it."
        )
    return image


async def read_upload(request: Request, most: int, seconds: float) -> bytes:
    """The body of a request, or the one file of a form.

    Raises:
        HTTPException: 400 if it is empty or broken, 408 if it is slow, 413 if it has more than `most` bytes.
    """
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or len(declared) > 20 or int(declared) > most:
        raise HTTPException(413, f"the upload has {declared[:20]} bytes. The limit is {most}.")
    left = most

    async def receive() -> MutableMapping[str, Any]:
        nonlocal left
        message = await request.receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise HTTPException(413, f"the upload has more than {most} bytes, the limit")
        return message

    bounded = Request(request.scope, receive)
    try:
        async with asyncio.timeout(seconds):
            data = await _content(bounded)
    except TimeoutError:
        raise HTTPException(408, f"the upload took more than {seconds:g} s") from None
    if not data:
        raise HTTPException(400, "the upload is empty. Send the bytes of an image, or a form with a file.")
    return data


async def _content(request: Request) -> bytes:
    if not request.headers.get("content-type", "").lower().startswith("multipart/"):
        return await request.body()
    async with request.form(max_files=1, max_fields=8) as form:
        files = [value for value in form.values() if isinstance(value, UploadFile)]
        if len(files) != 1:
            raise HTTPException(400, f"the form has {len(files)} files. Expected exactly one image.")
        return await files[0].read()
