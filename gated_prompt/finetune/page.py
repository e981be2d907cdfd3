# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""A report from its template: one file without scripts, links or fonts from elsewhere."""

import base64
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from PIL import Image

from .svg import percent

THUMBNAIL = 128  # pixels


def write_page(template: str, file: Path, results: Mapping[str, Any], **values: Any) -> None:
    """Write the page atomically. `template` lies beside this module, `results` is the content of results.json."""
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters["percent"] = percent
    settings = results["settings"]
    data = next(Path(settings[name]).name for name in ("train_dir", "train_file", "dataset") if settings[name])
    backbone = Path(settings["backbone"]).name
    page = pages.get_template(template).render(title=f"{data} on {backbone}", backbone=backbone, r=results, **values)
    partial = file.with_suffix(".partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, file)


def data_url(content: bytes, kind: str) -> str:
    """An image file as a URL that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def thumbnail(image: Image.Image) -> str:
    """A small JPEG of an image."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return data_url(file.getvalue(), "jpeg")
