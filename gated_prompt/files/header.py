# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Read safetensors headers and JSON with limits on their size.

Files come from anywhere, so the sizes that a header claims are compared with the size of the file before anything is
allocated. The format is described at https://github.com/huggingface/safetensors#format.
"""

import json
import math
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from safetensors import SafetensorError, safe_open

from ..errors import DamagedAdapterError

LONGEST_HEADER = 2**20  # bytes, for thousands of tensors. An adapter has at most five and those of its heads
LONGEST_CONFIG = 2**18  # bytes. A config has about one thousand
MOST_AXES = 8
# Exceptions of Python and the library for files that are not safetensors
UNREADABLE = (SafetensorError, OSError, ValueError, TypeError, KeyError, RecursionError, MemoryError, struct.error)
FLOATS = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8}  # dtypes allowed for prompts, with bytes per value
OTHERS = {
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}  # also allowed for heads


class Entry(NamedTuple):
    """The header entry of one tensor."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def is_float(self) -> bool:
        return self.dtype[0] in "FB" and self.dtype != "BOOL"

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * (FLOATS | OTHERS)[self.dtype]


def read_header(path: Path) -> dict[str, Entry]:
    """Return shape and dtype of each tensor in a safetensors file, reading at most `LONGEST_HEADER` bytes.

    Raises:
        DamagedAdapterError: it is not a safetensors file, or its header is too long or does not match the file size.
    """
    try:
        with open(path, "rb") as file:
            entries = _entries(file)
        with safe_open(path, "np"):  # for the library's own header checks. Maps the file and reads no tensor
            return entries
    except UNREADABLE as error:
        raise DamagedAdapterError(
            f"{path} is not a readable safetensors file ({_short(error)}). Save or download the adapter again."
        ) from error


def _entries(file: BinaryIO) -> dict[str, Entry]:
    size = os.fstat(file.fileno()).st_size
    (length,) = struct.unpack("<Q", file.read(8))
    if length > LONGEST_HEADER:
        raise ValueError(f"its header has {length} bytes, expected at most {LONGEST_HEADER}")
    header = parse_object(file.read(length))
    header.pop("__metadata__", None)
    entries = {key: Entry(_shape(value["shape"]), value["dtype"]) for key, value in header.items()}
    wanted = 8 + length + sum(entry.nbytes for entry in entries.values())
    if size != wanted:
        raise ValueError(f"it has {size} bytes, but its header describes {wanted}")
    return entries


def read_config(path: Path, longest: int = LONGEST_CONFIG) -> dict[str, Any]:
    """Return the JSON object in a file of at most `longest` bytes.

    Raises:
        DamagedAdapterError: it cannot be read, is longer, is not a JSON object, or repeats a key.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(longest + 1)
        if len(data) > longest:
            raise ValueError(f"it is longer than {longest} bytes")
        return parse_object(data)
    except TypeError as error:
        raise DamagedAdapterError(f"{path} contains {error}. Save or download the adapter again.") from error
    except (OSError, ValueError, RecursionError) as error:  # ValueError: invalid JSON, UTF-8 or number length
        raise DamagedAdapterError(
            f"{path} is not valid JSON ({_short(error)}). Save or download the adapter again."
        ) from error


def parse_object(data: bytes) -> dict[str, Any]:
    """Parse a JSON object without repeated keys.

    Raises:
        TypeError: it is another JSON type.
        ValueError, RecursionError: it is not valid JSON in UTF-8, or repeats a key.
    """
    values = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    if not isinstance(values, dict):
        raise TypeError(f"a {type(values).__name__}, expected a JSON object")
    return values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"repeated key {shown(key)}")
        values[key] = value
    return values


def _shape(sizes: list[Any]) -> tuple[int, ...]:
    if len(sizes) > MOST_AXES:  # multiplying thousands of sizes takes long
        raise ValueError(f"a tensor has {len(sizes)} axes, expected at most {MOST_AXES}")
    return tuple(map(_size, sizes))


def _size(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**48:  # no file is that large
        raise ValueError(f"{shown(value)} is not a valid size")
    return value


def shown(value: object) -> str:
    """Return the value for a message, shortened if long."""
    return _short(repr(value))


def _short(what: object) -> str:
    text = str(what)
    return text if len(text) <= 200 else f"{text[:200]}..."
