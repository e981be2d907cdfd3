# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Pictures of one pointed sprite on a plain ground: where is it, and which way does it point?

They stand for VTAB's structured tasks (dSprites). Picture i is the same on every machine: it is drawn by arithmetic
on numbers that depend on i alone. Angles are counted from the right, anticlockwise as one sees the picture.
"""

import numpy as np

SIDE = 32  # pixels
BINS = 8  # classes of either task
KINDS = ("position", "orientation")
_FINE = 4  # samples a pixel and axis
_MARGIN = 7.0  # pixels between the border and the nearest centre


def label(index: int, kind: str) -> int:
    """Class of picture `index`: its orientation in steps of 45 degrees, or its column from the left, 0 to 7."""
    return index % BINS if kind == "orientation" else index // BINS % BINS


def draw(index: int) -> np.ndarray:
    """Picture `index`, uint8 (32, 32, 3).

    A slim triangle whose tip points by the orientation, with a jitter of up to 10 degrees; its centre lies in the
    column of the position, at any height. Size and the two colours vary.
    """
    rng = np.random.default_rng((index, 2023))
    angle = np.deg2rad(45 * label(index, "orientation") + rng.uniform(-10, 10))
    width = (SIDE - 2 * _MARGIN) / BINS
    x = _MARGIN + width * (label(index, "position") + rng.uniform(0.1, 0.9))
    y = rng.uniform(_MARGIN, SIDE - _MARGIN)
    length = rng.uniform(5.0, 6.5)
    ground, ink = rng.uniform(0, 100, 3), rng.uniform(150, 255, 3)

    grid = (np.arange(SIDE * _FINE) + 0.5) / _FINE
    across, down = grid[None, :] - x, grid[:, None] - y
    along = np.cos(angle) * across - np.sin(angle) * down  # rows are counted downwards
    aside = np.sin(angle) * across + np.cos(angle) * down
    inside = (along > -0.7 * length) & (np.abs(aside) < 0.35 * (length - along))
    cover = inside.reshape(SIDE, _FINE, SIDE, _FINE).mean((1, 3))[:, :, None]
    return np.rint(ground + (ink - ground) * cover).astype(np.uint8)
