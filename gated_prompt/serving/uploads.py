# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Untrusted uploads: read within limits of size and time, and decoded as images of known formats."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

from fastapi import HTTPException, Request
from PIL import Image
from starlette.datastructures import UploadFile

from ..errors import DataError
from ..images import decode

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
SLENDER = 20  # longest side ratio: resizing the short side enlarges the long one in proportion


async def read_upload(request: Request, most: int, seconds: float) -> bytes:
    """The body of a request, or the one file of a form.

    Raises:
        HTTPException: 400 if it is empty or broken, 408 if it is slow, 413 if it has more than `most` bytes.
    """
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > most:
        raise HTTPException(413, f"the upload has {declared[:20]} bytes; the limit is {most}")
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
        raise HTTPException(400, "the upload is empty; send the bytes of an image, or a form with a file")
    return data


async def _content(request: Request) -> bytes:
    if not request.headers.get("content-type", "").startswith("multipart/"):
        return await request.body()
    async with request.form(max_files=1, max_fields=8) as form:
        files = [value for value in form.values() if isinstance(value, UploadFile)]
        if len(files) != 1:
            raise HTTPException(400, f"the form has {len(files)} files; exactly one image is needed")
        return await files[0].read()


def read_image(data: bytes, megapixels: float) -> Image.Image:
    """Decode an RGB image.

    Raises:
        DataError: it is no image, is damaged, is a strip, or has too many pixels, which is checked before decoding.
    """
    image = decode(data, "that was sent", formats=FORMATS, most_pixels=int(megapixels * 1e6))
    if max(image.size) > SLENDER * min(image.size):
        raise DataError(
            f"The image that was sent has {image.width} x {image.height} pixels; one side may be at most {SLENDER} "
            "times as long as the other. Crop it."
        )
    return image
