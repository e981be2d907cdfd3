"""Made-up images of discs and boxes on a ground, with their label maps, in every layout that users have."""

import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("ground", "disc", "box")
COLOURS = ((10, 20, 30), (200, 40, 60), (40, 180, 220))
PAINT = ((90, 90, 90), (210, 60, 50), (60, 110, 220))


def draw(seed: int, size: tuple[int, int] = (48, 64)) -> tuple[Image.Image, np.ndarray]:
    """An image and its labels (height, width): one disc and one box, and a corner that is ignored (255)."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    labels = np.zeros(size, dtype=np.uint8)
    top, left = rng.integers(0, size[0] - 20), rng.integers(0, size[1] - 20)
    labels[top : top + 18, left : left + 18] = 2
    y, x = rng.integers(9, size[0] - 9), rng.integers(9, size[1] - 9)
    labels[(rows - y) ** 2 + (columns - x) ** 2 < 80] = 1
    pixels = np.array(PAINT)[labels] + rng.normal(0, 12, (*size, 3))
    labels[:3, :3] = 255
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), labels


def save(folder: Path, kind: str = "bytes", count: int = 10, masks: str = "masks") -> Path:
    """`count` pairs below `folder`, whose masks are stored as `kind`: bytes, palette, sixteen, rgb, grey_rgb."""
    for part in ("images", masks):
        (folder / part).mkdir(parents=True)
    for index in range(count):
        image, labels = draw(index, (48, 64) if index % 3 else (64, 48))
        image.save(folder / "images" / f"{index:02d}.png")
        mask_of(labels, kind).save(folder / masks / f"{index:02d}.png")
    (folder / "classes.txt").write_text("\n".join(NAMES))
    with open(folder / "palette.csv", "w", newline="") as file:
        csv.writer(file).writerow(("name", "r", "g", "b"))
        csv.writer(file).writerows((name, *colour) for name, colour in zip(NAMES, COLOURS, strict=True))
        csv.writer(file).writerow(("unknown", 255, 255, 255))
    return folder


def mask_of(labels: np.ndarray, kind: str) -> Image.Image:
    colours = np.full((256, 3), 255, dtype=np.uint8)
    colours[: len(COLOURS)] = COLOURS
    if kind == "sixteen":
        return Image.fromarray(labels.astype(np.uint16))
    if kind == "rgb":
        return Image.fromarray(colours[labels])
    if kind == "grey_rgb":
        return Image.fromarray(np.repeat(labels[..., None], 3, 2))
    image = Image.fromarray(labels)
    if kind == "palette":
        image.putpalette(colours.tobytes())
    return image


def save_coco(folder: Path, count: int = 10) -> Path:
    """The same images with run lengths of discs, boxes and crowds (what is ignored) in annotations.json."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for index in range(count):
        image, labels = draw(index, (48, 64) if index % 3 else (64, 48))
        image.save(folder / "images" / f"{index:02d}.png")
        height, width = labels.shape
        images.append({"id": index, "file_name": f"{index:02d}.png", "height": height, "width": width})
        for value, category in ((1, 7), (2, 9), (255, 9)):
            shape = {"size": [height, width], "counts": run_lengths(labels == value)}
            found = {"id": len(annotations), "image_id": index, "category_id": category, "segmentation": shape}
            annotations.append({**found, "iscrowd": int(value == 255)})
    categories = [{"id": 7, "name": "disc"}, {"id": 9, "name": "box"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder / "annotations.json"


def run_lengths(inside: np.ndarray) -> list[int]:
    """COCO's uncompressed run lengths: column by column, beginning with what is outside."""
    flat = inside.T.ravel().astype(np.int8)
    edges = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), len(flat)]
    lengths = np.diff(edges).tolist()
    return [0, *lengths] if flat[0] else lengths
