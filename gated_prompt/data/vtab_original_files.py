# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""VTAB-1k tasks whose original data set stores one file per image: paths, keys and classes."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from . import vtab_labels
from .fgvc_original import read_mat


@dataclass(frozen=True)
class OriginalFiles:
    """A whole data set, accessed by TFDS key.

    Attributes:
        keys: Original split -> keys of all its examples.
        path: Returns the path of the image with a key.
        label: Returns the class of the image with a key.
        class_names: Class names in order. None if the data set does not list them.
    """

    keys: Mapping[str, list[str]]
    path: Callable[[str], Path]
    label: Callable[[str], int]
    class_names: list[str] | None = None


def first_folder(root: Path, *names: str, holding: str) -> Path:
    """Return `root`, or the first of the named folders in it, that contains `holding`.

    Raises:
        DataError: None of them does.
    """
    for folder in (root, *(root / name for name in names)):
        if (folder / holding).exists():
            return folder
    raise DataError(f"{root / holding} is missing, and no folder {' or '.join(names)} in {root} contains it.")


def _lines(file: Path, help_: str = "") -> list[str]:
    if not file.is_file():
        raise DataError(f"{file} is missing.{help_}")
    return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def _class_folders(folder: Path) -> OriginalFiles:
    """Read folders of JPEGs. TFDS prefixes the file name with the folder: AnnualCrop_AnnualCrop_1.jpg."""
    paths = {f"{file.parent.name}_{file.name}": file for file in folder.glob("*/*.jpg")}
    classes = sorted({file.parent.name for file in paths.values()})
    return OriginalFiles(
        {"train": list(paths)}, paths.__getitem__, lambda key: classes.index(paths[key].parent.name), classes
    )


def eurosat(root: Path, task: str) -> OriginalFiles:
    """Read ten folders of JPEGs, which `EuroSAT.zip` contains in `2750` or `EuroSAT_RGB`."""
    return _class_folders(first_folder(root, "2750", "EuroSAT_RGB", "EuroSAT", holding="AnnualCrop"))


def resisc45(root: Path, task: str) -> OriginalFiles:
    """Read 45 folders of 700 JPEGs, which `NWPU-RESISC45.rar` contains in a folder of that name."""
    return _class_folders(first_folder(root, "NWPU-RESISC45", holding="airplane"))


def flowers(root: Path, task: str) -> OriginalFiles:
    """Read `jpg/image_00001.jpg` and so on, `setid.mat` and `imagelabels.mat`."""
    labels, ids = read_mat(root / "imagelabels.mat")["labels"], read_mat(root / "setid.mat")
    keys = {
        split: [f"image_{number:05d}.jpg" for number in ids[name]]
        for split, name in (("train", "trnid"), ("validation", "valid"), ("test", "tstid"))
    }
    return OriginalFiles(keys, lambda key: root / "jpg" / key, lambda key: int(labels[int(key[6:11]) - 1]) - 1)


def pets(root: Path, task: str) -> OriginalFiles:
    """Read `images/Abyssinian_100.jpg` and so on, and the 1-based classes in `annotations/{trainval,test}.txt`."""
    keys: dict[str, list[str]] = {}
    classes: dict[str, int] = {}
    for split, name in (("train", "trainval.txt"), ("test", "test.txt")):
        rows = [line.split() for line in _lines(root / "annotations" / name)]
        keys[split] = [f"{row[0]}.jpg" for row in rows]
        classes |= {f"{row[0]}.jpg": int(row[1]) - 1 for row in rows}
    names = {number: key.rsplit("_", 1)[0] for key, number in classes.items()}
    ordered = [names[number] for number in sorted(names)]
    return OriginalFiles(keys, lambda key: root / "images" / key, classes.__getitem__, ordered)


def sun397(root: Path, task: str) -> OriginalFiles:
    """Read `a/abbey/sun_aaalbzqrimafwbiv.jpg` and so on, `ClassName.txt`, and TFDS's three lists next to them."""
    folder = first_folder(root, "SUN397", holding="ClassName.txt")
    classes = _lines(folder / "ClassName.txt")
    advice = " VTAB's split of sun397 is in the package tensorflow_datasets: sun397_tfds_{tr,va,te}.txt."
    keys = {
        split: _lines(folder / f"sun397_tfds_{name}.txt", advice)
        for split, name in (("train", "tr"), ("validation", "va"), ("test", "te"))
    }
    return OriginalFiles(
        keys,
        lambda key: folder / key.lstrip("/"),
        lambda key: classes.index(key.rsplit("/", 1)[0]),
        [name.lstrip("/") for name in classes],
    )


def clevr(root: Path, task: str) -> OriginalFiles:
    """Read `images/{train,val}/CLEVR_train_000000.png` and so on, and `scenes/CLEVR_{train,val}_scenes.json`."""
    folder = first_folder(root, "CLEVR_v1.0", holding="scenes")
    depths: dict[str, list[float]] = {}
    keys = {}
    for split, name in (("train", "train"), ("validation", "val")):
        file = folder / "scenes" / f"CLEVR_{name}_scenes.json"
        try:
            scenes = json.loads(file.read_text(encoding="utf-8"))["scenes"]
            found = {s["image_filename"]: [float(o["pixel_coords"][2]) for o in s["objects"]] for s in scenes}
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise DataError(f"{file} is missing or is not a list of CLEVR scenes ({error}).") from None
        keys[split] = list(found)
        depths |= found

    def label(key: str) -> int:
        if task == "clevr_count":
            return vtab_labels.clevr_count(len(depths[key]))
        return vtab_labels.clevr_distance(depths[key])

    return OriginalFiles(keys, lambda key: folder / "images" / key.split("_")[1] / key, label)


FILES: Mapping[str, Callable[[Path, str], OriginalFiles]] = {
    "eurosat": eurosat,
    "resisc45": resisc45,
    "oxford_flowers102": flowers,
    "oxford_iiit_pet": pets,
    "sun397": sun397,
    "clevr_count": clevr,
    "clevr_dist": clevr,
}
