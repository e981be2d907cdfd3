# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The five fine-grained data sets (FGVC) of visual prompt tuning: CUB-200-2011, NABirds, Flowers, Dogs and Cars.

Published results use the validation lists of VPT (Jia et al., https://arxiv.org/abs/2203.12119), JSON files that are
hard to find today. With these files, `load_json` is exact. Without them, the test split is still the official one. A
seeded random tenth of the official training images serves for validation, as many as in VPT's list but other images.
"""

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from ..images import ImageFiles, LabelledImages, Provenance
from .fgvc_original import READERS
from .hub import HubImages, open_table

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class FgvcSet:
    """One fine-grained data set.

    Attributes:
        name: Short name.
        num_classes: Number of classes.
        sizes: Number of images in the official splits "train", "test" and, for Flowers, "val".
        image_root: Subfolder that the paths in VPT's JSON files are relative to.
        repo: Hub repository. None if there is none that `datasets` can read.
        hub_splits: Name of each official split on the Hub.
    """

    name: str
    num_classes: int
    sizes: Mapping[str, int]
    image_root: str
    repo: str | None
    hub_splits: Mapping[str, str]

    def size_of(self, split: str) -> int:
        """Return the size of VPT's split. Its validation lists hold a tenth of the training images, rounded up."""
        if "val" in self.sizes or split == "test":
            return self.sizes[split]
        held_out = math.ceil(self.sizes["train"] / 10)
        return held_out if split == "val" else self.sizes["train"] - held_out


_TRAIN_TEST = {"train": "train", "test": "test"}
_ALL = (
    FgvcSet(
        "cub", 200, {"train": 5994, "test": 5794}, "images", "bentrevett/caltech-ucsd-birds-200-2011", _TRAIN_TEST
    ),
    FgvcSet("nabirds", 555, {"train": 23929, "test": 24633}, "images", None, {}),
    FgvcSet(
        "flowers",
        102,
        {"train": 1020, "val": 1020, "test": 6149},
        "",
        "dpdl-benchmark/oxford_flowers102",
        {"train": "train", "val": "validation", "test": "test"},
    ),
    FgvcSet("dogs", 120, {"train": 12000, "test": 8580}, "Images", "Donghyun99/Stanford-Dogs", _TRAIN_TEST),
    FgvcSet("cars", 196, {"train": 8144, "test": 8041}, "", "tanganke/stanford_cars", _TRAIN_TEST),
)
FGVC: Mapping[str, FgvcSet] = {each.name: each for each in _ALL}

_OFFICIAL = "The official split."


def _find(name: str, split: str) -> FgvcSet:
    if name not in FGVC:
        raise DataError(f"{name!r} is not an FGVC data set. The data sets are: {', '.join(FGVC)}.")
    if split not in SPLITS:
        raise DataError(f"{split!r} is not an FGVC split. The splits are: {', '.join(SPLITS)}.")
    return FGVC[name]


def load_json(root: str | Path, name: str, split: str) -> LabelledImages:
    """Load one split as VPT's JSON files list it, `{"relative/image/path": class id, ...}`.

    Args:
        root: The data set's folder, which also contains `train.json`, `val.json` and `test.json`.
        name: "cub", "nabirds", "flowers", "dogs" or "cars".
        split: "train", "val" or "test".

    Raises:
        DataError: A file is missing or malformed, or the number of classes is wrong.
    """
    spec = _find(name, split)
    folder = Path(root)
    lists = {each: _read_json(folder / f"{each}.json") for each in SPLITS if (folder / f"{each}.json").is_file()}
    if split not in lists:
        raise DataError(f"{folder / f'{split}.json'} is missing. Without VPT's lists, use load_folder or load_hub.")
    # VPT numbers the classes by sorted id. Read all lists, since a short one may lack some classes.
    classes = sorted({label for entries in lists.values() for label in entries.values()})
    if len(classes) != spec.num_classes:
        raise DataError(f"The JSON lists in {folder} hold {len(classes)} classes, expected {spec.num_classes}.")
    number = {label: i for i, label in enumerate(classes)}
    entries = lists[split]
    exact = len(entries) == spec.size_of(split)
    note = "VPT's own list." if exact else f"{split}.json lists {len(entries)} images, expected {spec.size_of(split)}."
    return LabelledImages(
        ImageFiles([folder / spec.image_root / path for path in entries], upright=False),
        [number[label] for label in entries.values()],
        num_classes=spec.num_classes,
        provenance=Provenance(name, split, str(folder), None, exact, note, len(entries), spec.size_of(split)),
    )


def _read_json(file: Path) -> dict[str, int]:
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(entries, dict) or not all(isinstance(label, int) for label in entries.values()):
        raise DataError(f'{file} does not have the form {{"relative/image/path": class id, ...}}.')
    return entries


def load_folder(root: str | Path, name: str, split: str, *, seed: int = 0) -> LabelledImages:
    """Load one split from the original data set. `fgvc_original` lists the files it reads.

    Args:
        root: The unpacked folder of the data set.
        name: "cub", "nabirds", "flowers", "dogs" or "cars".
        split: "train", "val" or "test".
        seed: Selects the validation tenth of the training images. Unused for Flowers, which has an official one.

    Raises:
        DataError: A file is missing or malformed, or the number of images or classes is wrong.
    """
    spec = _find(name, split)
    folder = Path(root)
    official = READERS[name](folder)
    classes = len({label for entries in official.values() for _, label in entries})
    if classes != spec.num_classes:
        raise DataError(f"{folder} has {classes} classes, expected {spec.num_classes} ({name}).")
    for each, size in spec.sizes.items():
        _check_count(name, each, len(official[each]), size, str(folder))
    chosen = _pick(spec, split, seed)
    # Sorted so that the sample does not depend on the order in which the files list the images.
    entries = sorted(official["train" if split not in spec.sizes else split])
    entries = entries if chosen is None else [entries[i] for i in chosen]
    return LabelledImages(
        ImageFiles([path for path, _ in entries], upright=False),
        [label for _, label in entries],
        num_classes=spec.num_classes,
        provenance=_provenance(spec, split, str(folder), revision=None, chosen=chosen, seed=seed),
    )


def load_hub(
    name: str, split: str, *, seed: int = 0, path: str | Path | None = None, revision: str | None = None
) -> LabelledImages:
    """Load one split from the Hub.

    Args:
        name: "cub", "flowers", "dogs" or "cars". NABirds is not on the Hub in a readable format.
        split: "train", "val" or "test".
        seed: As in `load_folder`.
        path: Local copy of the repository to read instead of the Hub.
        revision: Commit of the repository.

    Raises:
        DataError: The repository cannot be read, or has unexpected columns, row counts or classes.
    """
    spec = _find(name, split)
    if spec.repo is None:
        raise DataError(f"{name} has no Hub data set that `datasets` can read. Download it and use load_folder.")
    official = "train" if split not in spec.sizes else split
    table = open_table(spec.repo, spec.hub_splits[official], revision=revision, path=path)
    table.require(["image", "label"])
    _check_count(name, official, len(table), spec.sizes[official], table.source)
    chosen = _pick(spec, split, seed)
    rows = list(range(len(table))) if chosen is None else chosen
    return LabelledImages(
        HubImages([table], "image", [(0, row) for row in rows], upright=False),
        table.values("label", rows),
        num_classes=spec.num_classes,
        class_names=table.class_names("label"),
        provenance=_provenance(spec, split, table.source, revision=table.revision, chosen=chosen, seed=seed),
    )


def _check_count(name: str, split: str, count: int, expected: int, source: str) -> None:
    if count != expected:
        raise DataError(f"{source} has {count} images in {name}'s official {split} split, expected {expected}.")


def _pick(spec: FgvcSet, split: str, seed: int) -> list[int] | None:
    """Return positions in the official training split. None if the split itself is official."""
    if split == "test" or "val" in spec.sizes:
        return None
    size = spec.sizes["train"]
    held_out = set(random.Random(seed).sample(range(size), spec.size_of("val")))
    return [i for i in range(size) if (i in held_out) == (split == "val")]


def _provenance(
    spec: FgvcSet, split: str, source: str, *, revision: str | None, chosen: Sequence[int] | None, seed: int
) -> Provenance:
    note = _OFFICIAL
    if chosen is not None:
        note = f"A random tenth of the official training images (seed {seed}) is the validation split. VPT's differs."
    size = spec.size_of(split)
    return Provenance(spec.name, split, source, revision, chosen is None, note, size, size)
