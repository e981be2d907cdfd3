# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Draws docs/images/segmentation.png: rows of the report of a run on made-up shapes, on the shipped backbone.

python tools/segmentation_picture.py
"""

import base64
import io
import re
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from gated_prompt.finetune.segmentation import command

IMAGES = Path(__file__).parents[1] / "docs" / "images"
NAMES = ("ground", "disc", "box")
PAINT = np.array([(96, 110, 88), (206, 88, 70), (70, 116, 200)])
SIZE = (120, 160)  # height, width
COUNT, ROWS = 24, 3


def draw(seed: int) -> tuple[Image.Image, np.ndarray]:
    """An image of two discs and two boxes under uneven light, and its labels (height, width)."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    labels = np.zeros(SIZE, dtype=np.uint8)
    for label in (2, 2, 1, 1):
        y, x = rng.integers(20, SIZE[0] - 20), rng.integers(20, SIZE[1] - 20)
        half = rng.integers(12, 22)
        far = np.maximum(abs(rows - y), abs(columns - x)) if label == 2 else np.hypot(rows - y, columns - x)
        labels[far < half] = label
    light = 0.7 + 0.5 * columns[..., None] / SIZE[1]
    pixels = PAINT[labels] * light + rng.normal(0, 18, (*SIZE, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), labels


def main() -> None:
    """Train the linear map, and put some rows of its report under each other."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "shapes")
        for part in ("images", "masks"):
            (folder / part).mkdir(parents=True)
        for index in range(COUNT):
            image, labels = draw(index)
            image.save(folder / "images" / f"{index:02d}.png")
            Image.fromarray(labels).save(folder / "masks" / f"{index:02d}.png")
        (folder / "classes.txt").write_text("\n".join(NAMES))
        places = ["--output_dir", f"{place}/run", "--cache_dir", f"{place}/features"]
        command.main(["--train_dir", str(folder), "--methods", "none", "--image_size", "96", *places])
        page = Path(place, "run", "report.html").read_text()
    panels = re.findall(r'<figure><img [^>]*src="data:image/png;base64,([^"]+)"', page)[:ROWS]
    rows = [Image.open(io.BytesIO(base64.b64decode(panel))) for panel in panels]
    sheet = Image.new("RGB", (rows[0].width, sum(row.height + 6 for row in rows) - 6), "white")
    for number, row in enumerate(rows):
        sheet.paste(row, (0, number * (row.height + 6)))
    sheet.quantize(128).save(IMAGES / "segmentation.png", optimize=True)


if __name__ == "__main__":
    main()
