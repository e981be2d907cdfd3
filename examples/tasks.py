# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The image classification tasks that the example scripts know: scanned digits, and the 19 of VTAB-1k.

A task has 800 images to train on and 200 to choose settings with; the paper's final run trains on both. The test part
is scored once.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image
from transformers import ImageProcessingMixin

from gated_prompt import GatedPromptError
from gated_prompt.data.images import LabelledImages, Provenance
from gated_prompt.data.preprocess import VtabTransform
from gated_prompt.data.vtab import TASKS, load_folder, load_hub
from gated_prompt.errors import DataError

KNOWN = ("digits", *TASKS)


@dataclass(frozen=True)
class Task:
    """One task: `train` holds the 800 images, then the 200."""

    name: str
    class_names: list[str]
    train: LabelledImages
    test: LabelledImages


def load_task(name: str, data_dir: str | None = None) -> Task:
    """Load a task by name: from a folder in the community's "vtab-1k" layout, or from the Hub without one.

    Raises:
        DataError: the name is unknown (the known ones are listed), or the data are not what they should be.
    """
    if name not in KNOWN:
        raise DataError(f"unknown task {name!r}; known tasks: {', '.join(KNOWN)}")
    if name == "digits":
        train, test = _digits(slice(0, 1000), "train800val200"), _digits(slice(1000, None), "test")
    elif data_dir is not None:
        train, test = (load_folder(data_dir, name, split) for split in ("train800val200", "test"))
    else:
        train, test = (load_hub(name, split) for split in ("train800val200", "test"))
    names = train.class_names or [str(index) for index in range(train.num_classes)]
    return Task(name, list(names), train, test)


def transform_for(backbone: str) -> VtabTransform:
    """Straight resize to the size in a backbone's `preprocessor_config.json`, with its mean and standard deviation.

    The file is read without making an image processor of it: for that transformers 5.9 wants torchvision.

    Raises:
        GatedPromptError: there is no such file, or it lacks one of the three.
    """
    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(backbone)
        size = settings.get("crop_size") or settings["size"]
        side = size if isinstance(size, int) else size.get("height") or size["shortest_edge"]
        return VtabTransform(settings["image_mean"], settings["image_std"], size=int(side))
    except (OSError, KeyError) as error:
        raise GatedPromptError(
            f"cannot read size, image_mean and image_std from the preprocessor_config.json of {backbone!r} "
            f"({str(error).splitlines()[0]}); put one beside the model, as ViTImageProcessor.save_pretrained writes it"
        ) from error


@dataclass(frozen=True)
class _Scans:
    pixels: np.ndarray  # uint8 (N, 8, 8)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index]).convert("RGB")

    def name(self, index: int) -> str:
        return f"digit {index}"


def _digits(part: slice, split: str) -> LabelledImages:
    """The 1797 scanned digits that come with scikit-learn, 8 x 8 pixels, in a fixed random order."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))[part]
    provenance = Provenance(
        dataset="digits",
        split=split,
        source="scikit-learn load_digits (UCI optical recognition of handwritten digits)",
        revision=None,
        exact=True,
        note="All 1797 scans, shuffled; 800 + 200 to train on, the rest to test.",
        count=len(order),
        expected_count=len(order),
    )
    return LabelledImages(
        _Scans((data.images[order] * (255 / 16)).astype(np.uint8)),
        data.target[order].tolist(),
        num_classes=10,
        class_names=[str(name) for name in data.target_names],
        provenance=provenance,
    )
