# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Label maps in files: one byte a pixel, a palette, 16 bits or colours, and annotations in COCO's JSON.

COCO's polygons and run lengths are decoded by pycocotools. Where objects overlap, the smaller one lies on top. Pixels
without an object are the class "background", unless the categories have one of that name. Crowds (`iscrowd`) are
ignored.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...errors import DataError
from ...images import decode
from ...segmenter import IGNORE
from ..image_set import Picture
from .class_table import BACKGROUND, from_names, pack
from .mask_set import LabelMap, Unchecked

LOSSY = ("JPEG", "MPO")


def read_mask(source: Path | bytes, name: str, by_colour: bool) -> np.ndarray:
    """The values (H, W) int64 of a label map. With `by_colour` its colours, packed.

    A palette image stores the numbers of its colours, which count unless colours are asked for.

    Raises:
        DataError: it cannot be decoded, is a JPEG without a list of classes, or holds colours that nobody asked for.
    """
    return values_of(decode(source, name, as_stored=True), name, by_colour)


def values_of(mask: Image.Image, name: str, by_colour: bool) -> np.ndarray:
    """Return the same for a decoded label map."""
    if by_colour:
        return pack(np.asarray(mask.convert("RGB")))
    if mask.mode in ("RGB", "RGBA"):
        channels = np.asarray(mask)[..., :3]
        if (channels != channels[..., :1]).any():
            raise DataError(
                f"the mask {name} stores colours. Say which colour is which class with --palette classes.csv, lines "
                "of 'name,red,green,blue'."
            )
        return channels[..., 0].astype(np.int64)
    if mask.mode == "LA":
        mask = mask.getchannel(0)
    values = np.asarray(mask)
    if values.ndim != 2 or values.dtype.kind not in "bui":
        raise DataError(f"the mask {name} has {mask.mode} pixels. Expected whole numbers, one for each pixel.")
    return values.astype(np.int64)


def is_lossy(source: Path | bytes, name: str) -> bool:
    """Whether a file's format changes values when it is saved."""
    if isinstance(source, Path) and source.suffix.lower() == ".png":
        return False
    return decode_format(source, name) in LOSSY


def decode_format(source: Path | bytes, name: str) -> str | None:
    """Pillow's name of a file's format.

    Raises:
        DataError: it cannot be opened.
    """
    import io

    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return image.format
    except (OSError, ValueError) as error:
        raise DataError(f"the mask {name} cannot be decoded: {error}") from error


def read_coco(file: Path, folder: Path | None) -> Unchecked:
    """The images of a COCO file, which lie in `folder`, beside the file, or in images/ beside it.

    Raises:
        DataError: pycocotools is missing, or the file is something else than COCO's.
    """
    try:
        from pycocotools import mask as _  # noqa: F401
    except ImportError as error:
        raise DataError("COCO annotations need pycocotools: pip install gated-prompt[coco]") from error
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        images, annotations = content["images"], content["annotations"]
        categories = sorted(content["categories"], key=lambda one: int(one["id"]))
        names = [str(one["name"]) for one in categories]
        table = from_names(names if BACKGROUND in names else [BACKGROUND, *names])
        labels = {int(one["id"]): table.names.index(str(one["name"])) for one in categories}
        by_image: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in images}
        for one in annotations:
            by_image[one["image_id"]].append(one)
        sizes = [(int(image["height"]), int(image["width"])) for image in images]
        files = [_find_image(image["file_name"], file, folder) for image in images]
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file} is not a file of COCO annotations ({type(error).__name__}: {error}). It needs images, "
            "annotations and categories."
        ) from error
    background = table.names.index(BACKGROUND)
    masks = [
        LabelMap(str(image["file_name"]), partial(draw, by_image[image["id"]], size, labels, background))
        for image, size in zip(images, sizes, strict=True)
    ]
    found = [place for place, picture in enumerate(files) if picture is not None]
    if not found:
        raise DataError(f"none of the {len(files)} images of {file} lie beside it or in images/. Give --train_dir.")
    missing = {str(images[p]["file_name"]): "is missing" for p, picture in enumerate(files) if picture is None}
    pictures = [Picture(str(images[place]["file_name"]), partial(Path, files[place] or "")) for place in found]
    return Unchecked(pictures, [masks[place] for place in found], table, str(file), missing)


def draw(objects: list[dict[str, Any]], size: tuple[int, int], labels: dict[int, int], background: int) -> np.ndarray:
    """The label map (H, W) of an image's objects, the largest first, so that smaller ones lie on top.

    Raises:
        DataError: an object has neither polygons nor run lengths, or no known category.
    """
    shapes = []
    for one in objects:
        if one.get("category_id") not in labels:
            raise DataError(
                f"annotation {one.get('id')} has the category {one.get('category_id')}, which is not listed"
            )
        inside = decode_object(one, size)
        shapes.append((int(inside.sum()), IGNORE if one.get("iscrowd") else labels[one["category_id"]], inside))
    drawn = np.full(size, background, dtype=np.int64)
    for _, label, inside in sorted(shapes, key=lambda shape: -shape[0]):
        drawn[inside] = label
    return drawn


def decode_object(one: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Which pixels (H, W) an object covers."""
    from pycocotools import mask as coco

    shape = one.get("segmentation")
    try:
        if isinstance(shape, list):
            encoded = coco.merge(coco.frPyObjects(shape, *size))
        elif isinstance(shape, dict) and isinstance(shape["counts"], list):
            encoded = coco.frPyObjects(shape, *size)
        else:
            encoded = shape
        decoded: np.ndarray = coco.decode(encoded)
    except Exception as error:  # pycocotools passes on the errors of its C code
        raise DataError(f"annotation {one.get('id')} has no polygons and no run lengths ({error})") from error
    if decoded.shape != size:
        raise DataError(f"annotation {one.get('id')} has run lengths for {decoded.shape}, but its image is {size}")
    return decoded.astype(bool)


def _find_image(name: str, file: Path, folder: Path | None) -> Path | None:
    places = (folder,) if folder is not None else (file.parent, file.parent / "images")
    return next((place / name for place in places if (place / name).is_file()), None)
