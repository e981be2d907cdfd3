# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""VTAB-1k tasks whose original data set stores all images in a few arrays. The row number is the key.

Only the requested rows stay in memory.
"""

import gzip
import importlib
import io
import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError
from . import vtab_labels
from .fgvc_original import read_mat

Bytes = NDArray[np.uint8]
Rows = tuple[Bytes, list[int]]  # images (N, H, W) or (N, H, W, 3), and their classes
_DSPRITES = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
_NORB = {"train": "smallnorb-5x46789x9x18x6x2x96x96-training", "test": "smallnorb-5x01235x9x18x6x2x96x96-testing"}
_NORB_TYPES: dict[int, np.dtype[Any]] = {0x1E3D4C55: np.dtype("u1"), 0x1E3D4C54: np.dtype("<i4")}
_NUMPY = {(module, "_reconstruct") for module in ("numpy.core.multiarray", "numpy._core.multiarray")}
_NUMPY |= {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}


@dataclass(frozen=True)
class PixelRows:
    """Images (N, H, W) or (N, H, W, 3), uint8, each with a name for error messages."""

    pixels: Bytes
    rows: Sequence[str]
    source: str

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index]).convert("RGB")

    def name(self, index: int) -> str:
        return f"{self.rows[index]} of {self.source}"


def _pick(images: Any, rows: Sequence[int], size: int, file: Path) -> Bytes:
    """Select rows of an array of `size` images.

    Raises:
        DataError: The array has a different size.
    """
    if len(images) != size:
        raise DataError(f"{file} has {len(images)} images, expected {size}: one missing row shifts every slice.")
    return np.ascontiguousarray(images[list(rows)])


class _NumpyOnly(pickle.Unpickler):
    """Unpickles only arrays and plain values. Any other class in a pickle could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NUMPY:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return super().find_class(module, name)


def cifar(root: Path, task: str, split: str, rows: Sequence[int], size: int) -> Rows:
    """Read `train.bin` or `test.bin` of `cifar-100-binary`, or `train` or `test` of `cifar-100-python`."""
    for folder in (root, root / "cifar-100-binary", root / "cifar-100-python"):
        if (file := folder / f"{split}.bin").is_file():
            table = np.fromfile(file, dtype=np.uint8)
            if table.size % 3074:
                raise DataError(f"{file} is not CIFAR-100's binary file: {table.size} bytes, not a multiple of 3074.")
            table = table.reshape(-1, 3074)  # coarse class, fine class, three planes
            images, labels = table[:, 2:], table[:, 1]
            break
        if (file := folder / split).is_file():
            try:
                with open(file, "rb") as content:
                    stored = _NumpyOnly(content, encoding="bytes").load()
                images, labels = np.asarray(stored[b"data"], dtype=np.uint8), np.asarray(stored[b"fine_labels"])
            except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
                raise DataError(f"{file} is not CIFAR-100's Python file: {error}.") from None
            break
    else:
        raise DataError(f"Neither {split}.bin nor {split} of CIFAR-100 is in {root} or its cifar-100-* subfolders.")
    picked = _pick(images, rows, size, file).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(picked), [int(labels[row]) for row in rows]


def svhn(root: Path, task: str, split: str, rows: Sequence[int], size: int) -> Rows:
    """Read `train_32x32.mat` or `test_32x32.mat`."""
    file = root / f"{split}_32x32.mat"
    stored = read_mat(file)
    images = np.asarray(stored["X"]).transpose(3, 0, 1, 2)
    return _pick(images, rows, size, file), [vtab_labels.svhn(int(stored["y"][row])) for row in rows]


def patch_camelyon(root: Path, task: str, split: str, rows: Sequence[int], size: int) -> Rows:
    """Read `camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5`, unpacked."""
    try:
        h5py: Any = importlib.import_module("h5py")
    except ImportError as error:
        raise ImportError(f"reading patch_camelyon in {root} requires h5py: pip install h5py") from error
    name = {"train": "train", "validation": "valid", "test": "test"}[split]
    order = np.argsort(rows)
    back = np.argsort(order)
    ascending = [rows[i] for i in order]  # required by HDF5
    found = []
    for kind in ("x", "y"):
        file = root / f"camelyonpatch_level_2_split_{name}_{kind}.h5"
        try:
            with h5py.File(file, "r") as content:
                found.append(_pick(content[kind], ascending, size, file)[back])
        except (OSError, KeyError) as error:
            raise DataError(f"{file} is missing or not PatchCamelyon's: {error}.") from None
    return found[0], [int(label) for label in found[1].ravel()]


def dsprites(root: Path, task: str, split: str, rows: Sequence[int], size: int) -> Rows:
    """Read the `.npz` file, streaming its 3 GB of images rather than loading them into memory."""
    file = root / _DSPRITES
    try:
        with zipfile.ZipFile(file) as archive, archive.open("imgs.npy") as content:
            images = _rows_of_npy(content, rows, size, file)
        with np.load(file) as stored:
            factors = stored["latents_classes"][list(rows), 1:]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{file} is missing or not dSprites' file: {error}.") from None
    of_rows = [vtab_labels.dsprites_factors(row) for row in rows]
    if factors.tolist() != [list(each.values())[::-1] for each in of_rows]:
        raise DataError(f"{file} does not hold the images in dSprites' own order.")
    if task == "dsprites_loc":
        return images * np.uint8(255), [vtab_labels.dsprites_location(each["x"]) for each in of_rows]
    return images * np.uint8(255), [vtab_labels.dsprites_orientation(each["orientation"]) for each in of_rows]


def _rows_of_npy(content: Any, rows: Sequence[int], size: int, file: Path) -> Bytes:
    np.lib.format.read_magic(content)
    shape, fortran, kind = np.lib.format.read_array_header_1_0(content)
    if fortran or kind != np.uint8 or len(shape) != 3 or shape[0] != size:
        raise DataError(f"{file} has images of shape {shape} and type {kind}, expected {size} of uint8.")
    picked = np.empty((len(rows), *shape[1:]), dtype=np.uint8)
    place: dict[int, int] = {row: index for index, row in enumerate(rows)}
    step, length = 4096, shape[1] * shape[2]
    for first in range(0, size, step):
        count = min(step, size - first)
        block = np.frombuffer(content.read(count * length), dtype=np.uint8).reshape(count, *shape[1:])
        for row in range(first, first + count):
            if row in place:
                picked[place[row]] = block[row - first]
    return picked


def smallnorb(root: Path, task: str, split: str, rows: Sequence[int], size: int) -> Rows:
    """Read the left camera of `smallnorb-5x...-{dat,info}.mat` (not MATLAB files), plain or as `.gz`."""
    images, info = (_norb_matrix(root / f"{_NORB[split]}-{kind}.mat") for kind in ("dat", "info"))
    left = _pick(images[:, 0], rows, size, root / f"{_NORB[split]}-dat.mat")
    if task == "smallnorb_azi":
        return left, [vtab_labels.smallnorb_azimuth(int(info[row, 2])) for row in rows]
    return left, [vtab_labels.smallnorb_elevation(int(info[row, 1])) for row in rows]


def _norb_matrix(file: Path) -> NDArray[Any]:
    packed = file.with_name(f"{file.name}.gz")
    try:
        content = file.read_bytes() if file.is_file() else gzip.decompress(packed.read_bytes())
        stream = io.BytesIO(content)
        magic, count = (int(number) for number in np.frombuffer(stream.read(8), "<i4"))
        sizes = np.frombuffer(stream.read(4 * max(3, count)), "<i4")[:count]
        numbers: NDArray[Any] = np.frombuffer(content, dtype=_NORB_TYPES[magic], offset=stream.tell())
        return numbers.reshape(sizes)
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DataError(f"{file} is missing or not smallNORB's: {error}.") from None


ARRAYS: Mapping[str, Callable[[Path, str, str, Sequence[int], int], Rows]] = {
    "cifar": cifar,
    "svhn": svhn,
    "patch_camelyon": patch_camelyon,
    "dsprites_loc": dsprites,
    "dsprites_ori": dsprites,
    "smallnorb_azi": smallnorb,
    "smallnorb_ele": smallnorb,
}
