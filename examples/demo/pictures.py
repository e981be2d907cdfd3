# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Files into images, with a clear error for those that are not; attention and gates into figures."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # not pyplot, which is not made for a server's threads
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import nn

from gated_prompt import plots
from gated_prompt.errors import DataError
from gated_prompt.images import to_rgb

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MEGAPIXELS, MEGABYTES = 50, 30
# Grey on nothing can be read on a light and on a dark page.
INK = "#767676"
ON_ANY_PAGE: Any = {"figure.facecolor": "none", "axes.facecolor": "none", "legend.facecolor": "none"}
ON_ANY_PAGE |= dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
SIDE = 1024  # pixels: larger images are made smaller at once, as models and page show less


def read_image(path: Path) -> Image.Image:
    """RGB image from a file that a visitor gave, as training reads it, with at most `SIDE` pixels a side.

    Raises:
        DataError: it is no image of `FORMATS`, is damaged, or is too large. In words for the visitor.
    """
    known = ", ".join(FORMATS)
    size = path.stat().st_size / 1e6
    if size > MEGABYTES:
        raise DataError(f"{path.name} has {size:.0f} MB; images of up to {MEGABYTES} MB can be shown here.")
    try:
        with Image.open(path, formats=FORMATS) as opened:  # reads the head of the file, no pixels yet
            width, height = opened.size
            if width * height > MEGAPIXELS * 1e6:
                raise DataError(
                    f"{path.name} has {width} x {height} pixels; images of up to {MEGAPIXELS} megapixels can be shown "
                    "here. Make it smaller first."
                )
            opened.draft("RGB", (SIDE, SIDE))  # a JPEG is decoded at a fraction of its size
            image = to_rgb(opened)
            image.thumbnail((SIDE, SIDE), reducing_gap=2)
            return image
    except UnidentifiedImageError:
        raise DataError(f"{path.name} is not an image that can be read here. Give one of: {known}.") from None
    except Image.DecompressionBombError:
        raise DataError(f"{path.name} has too many pixels; up to {MEGAPIXELS} megapixels can be shown here.") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path.name} is damaged and cannot be shown ({error}). Save it again.") from error


def picture_of_attention(attention: plots.PromptAttention, image: Image.Image, token: str, block: int) -> Image.Image:
    """Attention of "prompts" or "cls" in one block, laid over the image."""
    small = ImageOps.contain(image, (480, 480)).resize((480, 480))  # squeezed to a square, as the model sees it
    with rc_context(ON_ANY_PAGE):
        figure = Figure(figsize=(4.2, 3.6), layout="constrained")
        ax = plots.plot_prompt_attention(attention, small, token, block=block, ax=figure.subplots())
        ax.set(xlabel="", ylabel="", xticks=[], yticks=[])
        return _render(figure)


def picture_of_gates(model: nn.Module, names: Mapping[str, str]) -> Image.Image:
    """Gates, selection ratios and temperatures by block, side by side. `names`: key on the model -> name to show."""
    with rc_context(ON_ANY_PAGE):
        figure = Figure(figsize=(12, 3.2), layout="constrained")
        axes: list[Axes] = list(figure.subplots(1, 3))
        plots.plot_gates(model, list(names), ax=axes[0])
        plots.plot_selection_ratios(model, list(names), ax=axes[1])
        plots.plot_temperatures(model, list(names), ax=axes[2])
        handles, labels = axes[0].get_legend_handles_labels()
        shown = [names.get(label, label) for label in labels]
        figure.legend(handles, shown, loc="outside upper center", ncols=len(names) + 1)
        for ax in axes:  # one legend for all, where it hides no line
            if (legend := ax.get_legend()) is not None:
                legend.remove()
        return _render(figure)


def _render(figure: Figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return Image.open(buffer).convert("RGBA")
