# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Semantic segmentation: ADE20K (150 classes) and other data sets with the same folder layout.

<root>/images/<split>/NAME.jpg
<root>/annotations/<split>/NAME.png      one byte per pixel
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from ..errors import DataError
from ..images import ImageFiles, Images, Provenance, decode
from .hub import HubImages, open_table

IGNORE = 255
"""Label of pixels that the loss and the scores ignore."""


@dataclass(frozen=True)
class SegmentationSpec:
    """How to read the label maps of a data set.

    Attributes:
        name: Name of the data set.
        num_classes: Number of classes.
        first_label: Stored value of class 0.
        void: Stored values that become `IGNORE`.
        sizes: Number of images by split, where known.
    """

    name: str
    num_classes: int
    first_label: int
    void: tuple[int, ...]
    sizes: Mapping[str, int] = field(default_factory=dict)


ADE20K = SegmentationSpec("ade20k", 150, 1, (0,), {"training": 20210, "validation": 2000})
CAMVID = SegmentationSpec("camvid", 11, 0, (11,))

_HUB_REPO = "sezer12138/ADE20k_Segementation"
_HUB_SPLITS = {"training": "train", "validation": "val"}


class LabelledMasks(Dataset[tuple[Image.Image, Image.Image]]):
    """A data set of (RGB image, label map) pairs of equal size.

    The label map is an 8-bit image of classes 0 to `num_classes - 1` and `IGNORE`.

    Attributes:
        num_classes: Number of classes.
        class_names: Class names in order. None if the source does not list them.
        provenance: Where the data came from.
    """

    def __init__(
        self,
        images: Images,
        masks: Images,
        spec: SegmentationSpec,
        provenance: Provenance,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.images = images
        self.masks = masks
        self.num_classes = spec.num_classes
        self.class_names = None if class_names is None else tuple(class_names)
        self.provenance = provenance
        self._spec = spec
        unknown = -1
        self._table = np.full(256, unknown, dtype=np.int16)
        self._table[spec.first_label : spec.first_label + spec.num_classes] = range(spec.num_classes)
        self._table[list(spec.void)] = IGNORE
        if self.class_names is not None and len(self.class_names) != spec.num_classes:
            raise DataError(
                f"{provenance.source} lists {len(self.class_names)} class name(s), expected {spec.num_classes}."
            )
        provenance.warn_if_inexact()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, Image.Image]:
        image, mask = self.images[index], self.masks[index]
        name = self.masks.name(index)
        if mask.mode not in ("L", "P"):
            raise DataError(f"The label map {name} has mode {mask.mode}, expected one byte per pixel (L or P).")
        if mask.size != image.size:
            raise DataError(
                f"The label map {name} has size {mask.size}, but its image has {image.size} (width, height)."
            )
        stored = np.asarray(mask)
        labels = self._table[stored]
        if labels.min() < 0:
            last = self._spec.first_label + self._spec.num_classes - 1
            raise DataError(
                f"The label map {name} contains the value {stored[labels < 0][0]}, expected"
                f" {self._spec.first_label} to {last} for the classes of {self._spec.name} and"
                f" {self._spec.void} for ignored pixels."
            )
        return image, Image.fromarray(labels.astype(np.uint8))


class _MaskFiles(ImageFiles):
    def __getitem__(self, index: int) -> Image.Image:
        return decode(self.paths[index], self.name(index), as_stored=True)


def load_folder(root: str | Path, split: str, spec: SegmentationSpec = ADE20K) -> LabelledMasks:
    """Load one split from a folder of images and annotations.

    Args:
        root: The folder that contains `images` and `annotations`. For ADE20K, `ADEChallengeData2016`.
        split: Name of the subfolder: "training" or "validation" for ADE20K.
        spec: The data set: `ADE20K`, `CAMVID` or your own.

    Raises:
        DataError: A folder is missing or empty, or an image or a label map has no counterpart.
    """
    folder = Path(root)
    images = {path.stem: path for path in sorted((folder / "images" / split).glob("*.jpg"))}
    masks = {path.stem: path for path in sorted((folder / "annotations" / split).glob("*.png"))}
    if not images:
        raise DataError(f"{folder / 'images' / split} has no JPEGs. Expected the images of {spec.name} there.")
    unpaired = sorted(images.keys() ^ masks.keys())
    if unpaired:
        raise DataError(
            f"{len(unpaired)} file(s) of images/{split} and annotations/{split} in {folder} have no counterpart. The"
            f" first is {unpaired[0]}."
        )
    provenance = _provenance(spec, split, str(folder), None, len(images))
    return LabelledMasks(
        ImageFiles(list(images.values()), upright=False),  # label maps are never rotated
        _MaskFiles([masks[stem] for stem in images]),
        spec,
        provenance,
        read_names(folder),
    )


def load_hub(split: str, *, path: str | Path | None = None, revision: str | None = None) -> LabelledMasks:
    """Load ADE20K from the Hub. Prefer `load_folder`, since the copy on the Hub is unofficial.

    Args:
        split: "training" or "validation".
        path: Local copy of the repository to read instead of the Hub.
        revision: Commit of the repository.

    Raises:
        DataError: The repository cannot be read or lacks a column.
    """
    if split not in _HUB_SPLITS:
        raise DataError(f"{split!r} is not a split of ADE20K. The splits are: {', '.join(_HUB_SPLITS)}.")
    table = open_table(_HUB_REPO, _HUB_SPLITS[split], revision=revision, path=path)
    table.require(["image", "annotated"])
    rows = [(0, row) for row in range(len(table))]
    return LabelledMasks(
        HubImages([table], "image", rows, upright=False),
        HubImages([table], "annotated", rows, as_stored=True),
        ADE20K,
        _provenance(ADE20K, split, table.source, table.revision, len(table)),
    )


def _provenance(spec: SegmentationSpec, split: str, source: str, revision: str | None, count: int) -> Provenance:
    expected = spec.sizes.get(split)
    exact = count == expected
    wanted = "the expected number is unknown" if expected is None else f"expected {expected}"
    note = "The official split." if exact else f"{count} images, {wanted}."
    return Provenance(spec.name, split, source, revision, exact, note, count, expected)


def read_names(folder: Path) -> list[str] | None:
    """Read class names from objectInfo150.txt in the folder or its parent. The last column may list synonyms."""
    for file in (folder / "objectInfo150.txt", folder.parent / "objectInfo150.txt"):
        if file.is_file():
            lines = file.read_text(encoding="utf-8").splitlines()[1:]
            return [line.split("\t")[-1].split(",")[0].strip() for line in lines if line.strip()]
    return None
