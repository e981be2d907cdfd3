# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Uploads of strangers: read as far as they may go, in the time they may take, into pictures of known formats."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

from fastapi import HTTPException, Request
from PIL import Image
from starlette.datastructures import UploadFile

from gated_prompt.data.images import decode
from gated_prompt.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
SLENDER = 20  # long side by short side: the short one is resized, and the long one grows in proportion


async def read_upload(request: Request, most: int, seconds: float) -> bytes:
    """What a request brings: its body, or the one file of a form.

    Raises:
        HTTPException: 400 it is empty or broken, 408 slow, 413 more than `most` bytes.
    """
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > most:
        raise HTTPException(413, f"the upload has {declared[:20]} bytes, at most {most} are read")
    left = most

    async def receive() -> MutableMapping[str, Any]:
        nonlocal left
        message = await request.receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise HTTPException(413, f"the upload has more than {most} bytes")
        return message

    bounded = Request(request.scope, receive)
    try:
        async with asyncio.timeout(seconds):
            data = await _content(bounded)
    except TimeoutError:
        raise HTTPException(408, f"the upload took more than {seconds:g} s") from None
    if not data:
        raise HTTPException(400, "the upload is empty; send the bytes of a picture, or a form with a file")
    return data


async def _content(request: Request) -> bytes:
    if not request.headers.get("content-type", "").startswith("multipart/"):
        return await request.body()
    async with request.form(max_files=1, max_fields=8) as form:
        files = [value for value in form.values() if isinstance(value, UploadFile)]
        if len(files) != 1:
            raise HTTPException(400, f"the form has {len(files)} files; one picture is needed")
        return await files[0].read()


def read_picture(data: bytes, megapixels: float) -> Image.Image:
    """RGB picture.

    Raises:
        DataError: it is none, is damaged, has too many pixels, which is known before they are decoded, or is a strip.
    """
    image = decode(data, "that was sent", formats=FORMATS, most_pixels=int(megapixels * 1e6))
    if max(image.size) > SLENDER * min(image.size):
        raise DataError(
            f"The image that was sent has {image.width} x {image.height} pixels; one side may be at most {SLENDER} "
            "times as long as the other. Crop it."
        )
    return image
