# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Images of one pointed sprite on a plain background: where is it, and which way does it point?

They stand in for VTAB's structured tasks (dSprites). Image i is the same on every machine, since it depends only on i.
Angles start at the right and increase anticlockwise as seen in the image.
"""

import numpy as np

SIDE = 32  # pixels
BINS = 8  # classes of each task
KINDS = ("position", "orientation")
_SAMPLES = 4  # per pixel and axis
_MARGIN = 7.0  # pixels between the border and the nearest centre


def label(index: int, kind: str) -> int:
    """Return the class of image `index`: its orientation in steps of 45 degrees, or its column from the left."""
    return index % BINS if kind == "orientation" else index // BINS % BINS


def draw(index: int) -> np.ndarray:
    """Draw image `index`, uint8 (32, 32, 3).

    A slim triangle points in the direction of the orientation, with a jitter of up to 10 degrees. Its centre lies in
    the column of the position, at any height. Size and both colours vary.
    """
    rng = np.random.default_rng((index, 2023))
    angle = np.deg2rad(45 * label(index, "orientation") + rng.uniform(-10, 10))
    width = (SIDE - 2 * _MARGIN) / BINS
    x = _MARGIN + width * (label(index, "position") + rng.uniform(0.1, 0.9))
    y = rng.uniform(_MARGIN, SIDE - _MARGIN)
    length = rng.uniform(5.0, 6.5)
    ground, ink = rng.uniform(0, 100, 3), rng.uniform(150, 255, 3)

    grid = (np.arange(SIDE * _SAMPLES) + 0.5) / _SAMPLES
    across, down = grid[None, :] - x, grid[:, None] - y
    along = np.cos(angle) * across - np.sin(angle) * down  # rows are counted downwards
    aside = np.sin(angle) * across + np.cos(angle) * down
    inside = (along > -0.7 * length) & (np.abs(aside) < 0.35 * (length - along))
    cover = inside.reshape(SIDE, _SAMPLES, SIDE, _SAMPLES).mean((1, 3))[:, :, None]
    return np.rint(ground + (ink - ground) * cover).astype(np.uint8)
