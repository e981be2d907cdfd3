# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Untrusted uploads, read within limits of size and time."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile


async def read_upload(request: Request, most: int, seconds: float) -> bytes:
    """The body of a request, or the one file of a form.

    Raises:
        HTTPException: 400 if it is empty or broken, 408 if it is slow, 413 if it has more than `most` bytes.
    """
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or len(declared) > 20 or int(declared) > most:
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
    if not request.headers.get("content-type", "").lower().startswith("multipart/"):
        return await request.body()
    async with request.form(max_files=1, max_fields=8) as form:
        files = [value for value in form.values() if isinstance(value, UploadFile)]
        if len(files) != 1:
            raise HTTPException(400, f"the form has {len(files)} files; exactly one image is needed")
        return await files[0].read()
