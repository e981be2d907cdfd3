# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The image classification tasks that the example scripts know: scanned digits, the 19 of VTAB-1k, the 5 of FGVC.

A VTAB task has 800 images to train on and 200 to choose settings with. The paper's final run trains on both. FGVC's
final runs train on its training part alone. The test part is scored once.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from gated_prompt.data import fgvc
from gated_prompt.data.ade20k import ADE20K
from gated_prompt.data.vtab import TASKS, load_folder, load_hub, load_original
from gated_prompt.data.vtab_original import UNREADABLE
from gated_prompt.errors import DataError
from gated_prompt.images import LabelledImages, Provenance
from gated_prompt.sharing.backbone import image_settings
from gated_prompt.transforms import ResizeCenterCrop, ResizeSquare

KNOWN = ("digits", *TASKS)


TRAIN_SPLITS = ("train800val200", "train800")
EVAL_SPLITS = ("test", "val200")
FGVC_EVAL_SPLITS = ("test", "val")


@dataclass(frozen=True)
class Task:
    """One task: the images to train on and those to score."""

    name: str
    class_names: list[str]
    train: LabelledImages
    eval: LabelledImages


def load_task(
    name: str, data_dir: str | None = None, train_split: str = "train800val200", eval_split: str = "test"
) -> Task:
    """Load digits or a VTAB task: from a folder, in the community's "vtab-1k" layout or the authors', or from the Hub.

    Raises:
        DataError: task or split are unknown (the known ones are listed), the images to score are among those to train
            on, or the data are not what they should be.
    """
    if name not in KNOWN:
        raise DataError(f"unknown task {name!r}. Choose from: {', '.join(KNOWN)}.")
    _check_split("--train_split", train_split, TRAIN_SPLITS)
    _check_split("--eval_split", eval_split, EVAL_SPLITS)
    if (train_split, eval_split) == ("train800val200", "val200"):
        raise DataError("--train_split train800val200 holds the images of --eval_split val200. Train on train800.")
    train, scored = (load_split(name, data_dir, split) for split in (train_split, eval_split))
    return _task(name, train, scored)


def load_fgvc_task(name: str, data_dir: str | None = None, eval_split: str = "test") -> Task:
    """Load an FGVC data set: by VPT's JSON lists where the folder has them, by its own lists, or from the Hub.

    Raises:
        DataError: data set or split are unknown (the known ones are listed), or the data are not what they should be.
    """
    if name not in fgvc.FGVC:
        raise DataError(f"unknown task {name!r}. Choose from: {', '.join(fgvc.FGVC)}.")
    _check_split("--eval_split", eval_split, FGVC_EVAL_SPLITS)
    train, scored = (load_split(name, data_dir, split) for split in ("train", eval_split))
    return _task(name, train, scored)


def load_split(name: str, data_dir: str | None, split: str) -> LabelledImages:
    """One split of a known task.

    Raises:
        DataError: the data are not what they should be.
    """
    if name == "digits":
        return _digits(split)
    if name in TASKS:
        return load_hub(name, split) if data_dir is None else _vtab_part(Path(data_dir), name, split)
    if data_dir is None:
        return fgvc.load_hub(name, split)
    load = fgvc.load_json if (Path(data_dir) / "train.json").is_file() else fgvc.load_folder
    return load(data_dir, name, split)


def splits_of(task: str) -> tuple[str, ...]:
    """The splits that the runs of a task's table use."""
    if task == "ade20k":
        return "training", "validation"
    return (*TRAIN_SPLITS, *EVAL_SPLITS) if task in TASKS or task == "digits" else ("train", *FGVC_EVAL_SPLITS)


def published_sizes(task: str) -> dict[str, int]:
    """How many images the benchmark has in each of `splits_of`."""
    if task == "ade20k":
        return dict(ADE20K.sizes)
    size_of = TASKS[task].size_of if task in TASKS else fgvc.FGVC[task].size_of
    return {split: size_of(split) for split in splits_of(task)}


def num_classes_of(task: str) -> int:
    """How many classes the benchmark has."""
    if task == "ade20k":
        return ADE20K.num_classes
    return TASKS[task].num_classes if task in TASKS else fgvc.FGVC[task].num_classes


def _vtab_part(root: Path, name: str, split: str) -> LabelledImages:
    """By the lists of the "vtab-1k" layout where they are. Else as the authors ship it, in `root` or `root/name`."""
    lists = [folder / name / f"{split}.txt" for folder in (root, root / "vtab-1k")]
    if any(file.is_file() for file in lists) or name in UNREADABLE:
        return load_folder(root, name, split)
    try:
        return load_original(root / name if (root / name).is_dir() else root, name, split)
    except DataError as error:
        raise DataError(
            f"neither {lists[0]} nor {lists[1]} is there, as in the 'vtab-1k' layout, and as its authors ship {name}: "
            f"{error}"
        ) from error


def _check_split(argument: str, split: str, known: tuple[str, ...]) -> None:
    if split not in known:
        raise DataError(f"unknown {argument} {split!r}. Choose from: {', '.join(known)}.")


def _task(name: str, train: LabelledImages, scored: LabelledImages) -> Task:
    return Task(name, list(train.class_names or map(str, range(train.num_classes))), train, scored)


def transform_for(backbone: str, task: str) -> ResizeSquare:
    """Straight resize to a backbone's size: for VTAB's tasks as the published runs do, else at pixel centres."""
    wanted = image_settings(backbone)
    if task in TASKS:
        return ResizeSquare(wanted.mean, wanted.std, wanted.side, "tf1")
    return ResizeSquare(wanted.mean, wanted.std, wanted.side, "half_pixel", round_to_bytes=True)


def fgvc_transform_for(backbone: str, train: bool) -> ResizeCenterCrop:
    """Short side to 256 and a crop of 224, or in that proportion for a backbone of another size."""
    wanted = image_settings(backbone)
    resize = round(wanted.side * 256 / 224)
    return ResizeCenterCrop(wanted.mean, wanted.std, train=train, resize=resize, crop=wanted.side)


@dataclass(frozen=True)
class _Scans:
    pixels: np.ndarray  # uint8 (N, 8, 8)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index]).convert("RGB")

    def name(self, index: int) -> str:
        return f"digit {index}"


_DIGITS_PARTS = {
    "train800": slice(800),
    "val200": slice(800, 1000),
    "train800val200": slice(1000),
    "test": slice(1000, None),
}


def _digits(split: str) -> LabelledImages:
    """The 1797 scanned digits that come with scikit-learn, 8 x 8 pixels, in a fixed random order."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))[_DIGITS_PARTS[split]]
    provenance = Provenance(
        dataset="digits",
        split=split,
        source="scikit-learn load_digits (UCI optical recognition of handwritten digits)",
        revision=None,
        exact=True,
        note="All 1797 scans, shuffled: 800 + 200 to train on, the rest to test.",
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
