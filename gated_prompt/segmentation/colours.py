# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Colours of classes, and label maps as palette PNG and as overlays."""

import colorsys
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

Colour = tuple[int, int, int]
# Told apart with every kind of colour vision: Okabe and Ito (2008), then Tol's "muted" and "light" (2021).
SAFE = [
    "e69f00",
    "56b4e9",
    "009e73",
    "f0e442",
    "0072b2",
    "d55e00",
    "cc79a7",
    "000000",
    "332288",
    "88ccee",
    "44aa99",
    "117733",
    "999933",
    "ddcc77",
    "cc6677",
    "882255",
    "aa4499",
    "77aadd",
    "ee8866",
    "bbcc33",
]
GOLDEN = 0.618034  # steps of this size keep neighbouring hues apart for any number of classes
WHITE = 255


def palette(count: int, own: Sequence[Sequence[int]] | None = None) -> np.ndarray:
    """Colours (256, 3) uint8 of the labels 0 to `count` - 1. The rest, ignored pixels among it, is white.

    `own`: the user's colours. Beyond the first twenty classes hues repeat in two lightnesses.
    """
    colours = np.full((256, 3), WHITE, dtype=np.uint8)
    for label in range(count):
        if own is not None:
            colours[label] = own[label]
        elif label < len(SAFE):
            colours[label] = list(bytes.fromhex(SAFE[label]))
        else:
            hue = label * GOLDEN % 1
            colours[label] = [round(255 * part) for part in colorsys.hls_to_rgb(hue, (0.35, 0.7)[label % 2], 0.7)]
    return colours


def label_png(labels: np.ndarray, colours: np.ndarray) -> bytes:
    """A palette PNG of labels (H, W): its pixels are the labels, its palette shows them."""
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(colours.tobytes())
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def overlay(image: Image.Image, labels: np.ndarray, colours: np.ndarray, share: float = 0.55) -> Image.Image:
    """The image with the colours of labels (H, W) over it."""
    shown = colours[labels].astype(np.float32) * share + np.asarray(image, dtype=np.float32) * (1 - share)
    return Image.fromarray(shown.round().astype(np.uint8))
