# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""From an image to its label map: a file beside the weights, so that folder and backbone are enough."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import DamagedAdapterError, DataError, GatedPromptError
from ..files.folder import replace_text
from ..files.header import read_config, shown
from ..heads import load_backbone
from ..predictor import FILE, MOST_PIXELS
from ..segmenter import SegmentationHead, TokenSegmenter
from ..transforms import normalize, to_pixels
from .colours import palette
from .sliding_window import resize, scaled_size, window_logits

PREPARATION = {"mean", "std", "short_side", "window"}
BATCH = 4  # windows at once


@dataclass(frozen=True)
class MaskPredictor:
    """The content of `predictor.json` beside a segmenter's weights. Unknown fields in the file are ignored.

    Attributes:
        names: of the classes, in the order of the logits.
        preparation: of images: mean, std, short_side, to which images are scaled, in pixels, and window, the side of
            the squares that a larger image is cut into. Both are multiples of the patch.
        blocks: which the head reads.
        head: "linear" or "conv".
        backbone: Hub id or name of the model that it was trained on.
        base: settings of the backbone's config that differ from those published: num_hidden_layers, or none.
        colours: of the classes, red, green and blue. None means those of `segmentation.colours`.

    Raises:
        DataError: a value is not what it should be.
    """

    names: list[str]
    preparation: Mapping[str, Any]
    blocks: Sequence[int]
    head: SegmentationHead = "linear"
    backbone: str | None = None
    base: Mapping[str, Any] = field(default_factory=dict)
    colours: Sequence[Sequence[int]] | None = None
    problem: ClassVar[str] = "segmentation"

    def __post_init__(self) -> None:
        if not isinstance(self.names, list) or not self.names or not all(isinstance(n, str) for n in self.names):
            raise DataError(f"names is {shown(self.names)}. Expected a list of names, one for each class.")
        if not _are_counts(self.blocks) or self.head not in get_args(SegmentationHead):
            raise DataError(
                f"blocks is {shown(self.blocks)}, head is {shown(self.head)}. Expected indices for the first, linear "
                "or conv for the second."
            )
        if not isinstance(self.backbone, str | None) or not _is_base(self.base):
            raise DataError(
                f"backbone is {shown(self.backbone)}, base is {shown(self.base)}. Expected text for the first, and "
                f"{{}} or a number of blocks as num_hidden_layers for the second."
            )
        if self.colours is not None and not (
            isinstance(self.colours, list | tuple)
            and len(self.colours) == len(self.names)
            and all(_are_counts(one) and len(one) == 3 and max(one) <= 255 for one in self.colours)
        ):
            raise DataError(f"colours is {shown(self.colours)}. Expected red, green and blue of each class.")
        self._check_preparation()

    def load_base(self, backbone: str | os.PathLike[str] | None = None, trust_remote_code: bool = False) -> Any:
        """Load the model that it was trained on, in float32 and eval mode, with an untrained head.

        Args:
            backbone: Hub id or folder to load it from. None means the one used in training.
            trust_remote_code: run Python code that the backbone brings.

        Raises:
            GatedPromptError: it cannot be loaded, or its location is unknown.
        """
        source = os.fspath(backbone or self.backbone or "")
        if not source:
            raise GatedPromptError(f"{FILE} does not name the backbone. Name it: load_base('folder or Hub id').")
        return self.with_head(load_backbone(source, trust_remote_code, **self.base))

    def with_head(self, backbone: Any) -> TokenSegmenter:
        """A loaded backbone with an untrained head that reads it as `blocks` and `head` say, in eval mode."""
        return TokenSegmenter(backbone, self.names, self.blocks, self.head).eval()

    def pixels(self, image: Image.Image, multiple: int) -> Tensor:
        """Turn an RGB image into float (3, height, width), scaled as in training. `multiple` divides its sides."""
        height, width = scaled_size((image.height, image.width), self.preparation["short_side"], multiple)
        small = image.resize((width, height), Image.Resampling.BILINEAR)
        return normalize(to_pixels(small), self.preparation["mean"], self.preparation["std"])

    @torch.inference_mode()
    def scores(self, model: Callable[[Tensor], Any], pixels: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits (K, *size) of the pixels (3, height, width) of an image whose label map has `size`."""
        window = int(self.preparation["window"])
        return resize(window_logits(model, pixels, window, window * 2 // 3, BATCH), size)

    def label_map(self, model: nn.Module, image: Image.Image) -> np.ndarray:
        """The label of each pixel, uint8 (H, W). `model`: a `TokenSegmenter`, perhaps with an adapter."""
        device = next(model.parameters()).device
        pixels = self.pixels(image, segmenter_of(model).patch_size).to(device)
        labels: np.ndarray = self.scores(model, pixels, (image.height, image.width)).argmax(0).byte().cpu().numpy()
        return labels

    def palette(self) -> np.ndarray:
        """Colours (256, 3) of the labels."""
        return palette(len(self.names), self.colours)

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write `predictor.json` into an adapter's folder, atomically."""
        values = {"problem": self.problem, **asdict(self)}
        replace_text(Path(folder, FILE), json.dumps(values, indent=2, ensure_ascii=False) + "\n")

    def _check_preparation(self) -> None:
        given = self.preparation
        if not isinstance(given, Mapping) or set(given) != PREPARATION:
            raise DataError(f"preparation {shown(given)} needs exactly {', '.join(sorted(PREPARATION))}")
        for name in ("mean", "std"):
            values = given[name]
            if (
                not isinstance(values, list | tuple)
                or len(values) != 3
                or not all(isinstance(v, int | float) for v in values)
            ):
                raise DataError(f"preparation has {name}={shown(values)}. Expected three numbers.")
        sides = [given["short_side"], given["window"]]
        if 0 in given["std"] or not all(type(side) is int and 0 < side <= MOST_PIXELS for side in sides):
            raise DataError(f"preparation {shown(given)} has a std of 0, or sides beyond 1 to {MOST_PIXELS} pixels")


def segmenter_of(model: nn.Module) -> TokenSegmenter:
    """The segmenter below an adapter, or the model itself."""
    base: Any = getattr(model, "get_base_model", lambda: model)()
    found: TokenSegmenter = base
    return found


def is_mask_predictor(folder: str | os.PathLike[str]) -> bool:
    """Whether the file in a folder says that it is about label maps."""
    path = Path(folder, FILE)
    return path.is_file() and read_config(path).get("problem") == MaskPredictor.problem


def read_mask_predictor(folder: str | os.PathLike[str]) -> MaskPredictor:
    """Read what `MaskPredictor.write` wrote.

    Raises:
        DamagedAdapterError: there is no such file, or it says what cannot be.
    """
    path = Path(folder, FILE)
    if not is_mask_predictor(folder):
        raise DamagedAdapterError(
            f"{path} is missing or not about label maps. Give the output folder of a segmentation run."
        )
    values = read_config(path)
    known = {one.name for one in fields(MaskPredictor)}
    try:
        return MaskPredictor(**{name: value for name, value in values.items() if name in known})
    except (DataError, TypeError) as error:
        raise DamagedAdapterError(
            f"{path}: {str(error).removesuffix('.')}. Correct it, or train or download the adapter again."
        ) from error


def _are_counts(values: object) -> bool:
    return isinstance(values, list | tuple) and bool(values) and all(type(one) is int and one >= 0 for one in values)


def _is_base(value: object) -> bool:
    """Nothing else goes to `from_pretrained`: a file that was downloaded could ask for code to be run."""
    counts = list(value.values()) if isinstance(value, Mapping) and set(value) <= {"num_hidden_layers"} else [0]
    return all(type(count) is int and count > 0 for count in counts)
