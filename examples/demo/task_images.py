# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Images of the demo page's three tasks, as folders that gated-prompt train reads.

    python examples/demo/task_images.py --cifar10 cifar10 --output_dir runs/demo/images

`cifar10` is a data set in a folder, with CIFAR-10's images and labels. Without it, there are no images of objects.
"""

import argparse
import io
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # examples/, as for the scripts that lie there

from demo.shapes import draw_part
from paper.tasks import load_split

PARTS = ("train", "test")
OBJECTS = {"train": 2000, "test": 1000}  # images, the first of each part
Drawn = Iterator[tuple[str, bytes, str]]  # name of the class, content and ending of a file


def digits(part: str) -> Drawn:
    """scikit-learn's scans, 8 x 8 pixels: 1000 to train on, the others to test."""
    scans = load_split("digits", None, "train800val200" if part == "train" else "test")
    for index in range(len(scans)):
        image, label = scans[index]
        yield str(label), _as_png(image), "png"


def objects(part: str, folder: Path) -> Drawn:
    """CIFAR-10's files as they are."""
    import datasets

    data = datasets.load_dataset(str(folder), split=f"{part}[:{OBJECTS[part]}]")
    names = data.features["label"].names
    for row in data.cast_column("image", datasets.Image(decode=False)):
        yield names[row["label"]], row["image"]["bytes"], "jpg"


def shapes(part: str) -> Drawn:
    """Drawn shapes, 32 x 32 pixels."""
    for name, image in draw_part(part):
        yield name, _as_png(image), "png"


def _as_png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "png")
    return content.getvalue()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--cifar10", type=Path, help="folder of the data set (default: no images of objects)")
    parser.add_argument("--output_dir", type=Path, required=True, help="gets subfolders such as shapes/train/star")
    args = parser.parse_args(argv)
    for part in PARTS:
        tasks = {"digits": digits(part), "shapes": shapes(part)}
        if args.cifar10 is not None:
            tasks["objects"] = objects(part, args.cifar10)
        for task, images in tasks.items():
            for index, (name, content, ending) in enumerate(images):
                path = args.output_dir / task / part / name / f"{index:04d}.{ending}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)


if __name__ == "__main__":
    main()
