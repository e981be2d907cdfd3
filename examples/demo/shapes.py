# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Drawn shapes, the third task of the demo page."""

import math
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw

SHAPES = {  # distance of each corner from the centre, at equal angles
    "circle": [1.0] * 40,
    "cross": [1.0, 1.0, 0.35] * 4,
    "square": [1.0] * 4,
    "star": [1.0, 0.4] * 5,
    "triangle": [1.0] * 3,
}
UPRIGHT = {"circle": 0, "cross": -15, "square": 45, "star": -90, "triangle": -90}  # degrees of the first corner
SIDE, FINER = 32, 4  # pixels of an image, and how many times larger it is drawn, for smooth edges
PARTS = {"train": 2000, "validation": 200, "test": 500}  # images


def draw_shape(name: str, rng: np.random.Generator) -> Image.Image:
    """One shape in a random colour, size and place, turned a little, on a ground of another colour: RGB, 32 x 32."""
    ground, colour = rng.integers(0, 256, (2, 3))
    while np.abs(ground - colour).mean() < 60:  # else it could not be seen
        ground, colour = rng.integers(0, 256, (2, 3))
    radius, turn = FINER * rng.uniform(7, 13), math.radians(UPRIGHT[name] + rng.uniform(-15, 15))
    x, y = rng.uniform(radius, FINER * SIDE - radius, 2)
    angles = turn + np.linspace(0, 2 * math.pi, len(SHAPES[name]), endpoint=False)
    reach = radius * np.array(SHAPES[name])
    points = np.column_stack((x + reach * np.cos(angles), y + reach * np.sin(angles)))
    image = Image.new("RGB", (FINER * SIDE, FINER * SIDE), tuple(ground.tolist()))
    ImageDraw.Draw(image).polygon(points.ravel().tolist(), fill=tuple(colour.tolist()))
    return image.resize((SIDE, SIDE), Image.Resampling.BOX)


def draw_part(part: str) -> Iterator[tuple[str, Image.Image]]:
    """Name and image of every shape of one of `PARTS`, the same every time, as many of each name."""
    rng = np.random.default_rng(list(PARTS).index(part))
    for index in range(PARTS[part]):
        name = list(SHAPES)[index % len(SHAPES)]
        yield name, draw_shape(name, rng)
