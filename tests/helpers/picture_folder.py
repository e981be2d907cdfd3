"""Class folders of small pictures that a random ViT can tell apart, as a user might have them."""

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"blå": (40, 60, 200), "gul": (210, 190, 40), "rød": (200, 40, 50)}


def paint(colour: tuple[int, int, int], seed: int) -> Image.Image:
    """A noisy picture of 40 x 36 pixels around one colour."""
    noise = np.random.default_rng(seed).normal(0, 60, (36, 40, 3))
    return Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8))


def make_folder(folder: Path, count: int = 12) -> Path:
    """`count` pictures of each colour; every third one lies a folder deeper."""
    for number, (name, colour) in enumerate(COLOURS.items()):
        for index in range(count):
            place = folder / name / ("deeper" if index % 3 == 0 else "")
            place.mkdir(parents=True, exist_ok=True)
            paint(colour, 100 * number + index).save(place / f"{index:02d}.png")
    return folder
