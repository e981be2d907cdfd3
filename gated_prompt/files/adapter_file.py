# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The weights file of a saved adapter: find it, and check that it is complete and matches its config.

PEFT loads files with missing keys (with a warning), surplus keys and NaNs (silently), and reads files of any size.
Here, names, shapes and sizes are first compared with the config, from the header alone. Only then is the content read,
in pieces.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import file_exists, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import safe_open

from ..errors import DamagedAdapterError
from .header import FLOATS, Entry, read_header
from .layout import BANK, PARAMETERS, PREFIX

FINGERPRINT = "weights_sha256"  # field of the config
SMALL = 2**28  # bytes: larger files are read only after comparing the shapes in their header with a base
MOST_IGNORED = 1000  # tensors of other adapters
PIECE = 2**20  # values that are checked together
SETTLING = 0.2  # seconds: PEFT writes the weights first, so the config may follow


@dataclass(frozen=True)
class AdapterFile:
    """The weights beside an adapter's config.

    Attributes:
        place: the folder or repository, for messages.
        path: `adapter_model.safetensors`. None if there is only a config.
        entries: the header, without the tensors of other adapters, which no reader uses.
        stamp: distinguishes this file from one that replaces it later.
        sha256: the hash recorded in the config. None if it was not recorded.
    """

    place: str
    path: Path | None = None
    entries: Mapping[str, Entry] = field(default_factory=dict)
    stamp: tuple[int, ...] | None = None
    sha256: str | None = None

    @classmethod
    def find(cls, source: str, subfolder: str | None, download: Mapping[str, Any], sha256: str | None) -> Self:
        """Find the weights in a folder or Hub repository and read their header. `download`: as in PEFT.

        Raises:
            DamagedAdapterError: there is a pickle instead, or it is not a safetensors file (see `read_header`).
        """
        place = os.path.join(source, subfolder) if subfolder else source
        path = _locate(source, subfolder, place, download)
        if path is None:
            return cls(place)
        return cls(place, path, read_header(path), stamp_of(path), sha256)

    @property
    def folder(self) -> Path:
        """The folder that contains, or should contain, the weights."""
        return Path(self.place) if self.path is None else self.path.parent

    @property
    def is_small(self) -> bool:
        """Whether it may be read before comparing its header with a base."""
        return self.stamp is None or self.stamp[-1] <= SMALL

    @property
    def is_replaced(self) -> bool:
        """Whether another file has replaced it."""
        return self.path is not None and stamp_of(self.path) != self.stamp

    def check_tensors(self, shapes: Mapping[str, tuple[int, ...]], heads: Collection[str]) -> Self:
        """Compare the header with the parameter shapes and heads of the config, without reading the tensors.

        Returns:
            The file without the tensors of other adapters.

        Raises:
            DamagedAdapterError: a tensor is missing, has another shape or type, or is not part of this adapter.
        """
        if self.path is None:
            return self
        expected = {f"{PREFIX}{BANK}.{name}": shape for name, shape in shapes.items()}
        for key, shape in expected.items():
            self._check_tensor(key, shape)
        starts = tuple(f"{PREFIX}{name}." for name in heads)
        for start in starts:
            if not any(key.startswith(start) for key in self.entries):
                raise DamagedAdapterError(
                    f"{self.path} lacks the tensors of the head {start!r}. Save or download it again."
                )
        own = {key: entry for key, entry in self.entries.items() if key in expected or key.startswith(starts)}
        self._check_others({key: entry for key, entry in self.entries.items() if key not in own}, expected, starts)
        return replace(self, entries=own)

    def check_content(self) -> None:
        """Check that all values are finite, and that the file was saved with its config.

        Raises:
            DamagedAdapterError: one of these is not so.
        """
        if self.path is None:
            return
        with safe_open(self.path, "pt") as file:
            for key, entry in self.entries.items():
                if entry.is_float and not _is_finite(file.get_tensor(key)):
                    raise DamagedAdapterError(
                        f"{key} in {self.path} holds NaN or infinite values. Train or download it again."
                    )
        # Last, since the checks above explain more. Equal shapes do not prove a match: pooling does not affect them.
        found = self.sha256 and fingerprint(self.path)
        if found != self.sha256:
            if time.time() - self.path.stat().st_mtime < 1:
                time.sleep(SETTLING)
            raise DamagedAdapterError(
                f"{self.path} was not saved with its {CONFIG_NAME}: its SHA-256 is {found}, "
                f"expected {self.sha256}. A save was interrupted or files were mixed. Save or download the adapter "
                f'again. If you changed the weights yourself, set "{FINGERPRINT}" to null in {CONFIG_NAME}.'
            )

    def copy_to(self, folder: Path) -> Self:
        """Copy the file to another folder, where nothing replaces it."""
        if self.path is None:
            return self
        path = Path(shutil.copy(self.path, folder / SAFETENSORS_WEIGHTS_NAME))
        return replace(self, path=path, stamp=stamp_of(path))

    def _check_tensor(self, key: str, shape: tuple[int, ...]) -> None:
        found = self.entries.get(key)
        if found is None:
            raise DamagedAdapterError(
                f"{self.path} lacks {key}, expected with shape {shape}. Save or download it again."
            )
        if found.shape != shape:
            raise DamagedAdapterError(
                f"{key} in {self.path} has shape {found.shape}, but its {CONFIG_NAME} requires {shape}. Config "
                "and weights must come from the same save."
            )
        if found.dtype not in FLOATS:
            raise DamagedAdapterError(
                f"{key} in {self.path} has type {found.dtype}, expected one of {', '.join(FLOATS)}. Save or download "
                "the adapter again."
            )

    def _check_others(
        self, others: Mapping[str, Entry], expected: Mapping[str, object], heads: tuple[str, ...]
    ) -> None:
        """Refuse surplus tensors, except prompts of other adapters: PEFT 0.18 saves those of all on the model."""
        ignored = tuple(f"{PREFIX}{BANK}.{name}." for name in PARAMETERS)
        surplus = sorted(key for key in others if not key.startswith(ignored))
        if surplus:
            raise DamagedAdapterError(
                f"{self.path} has tensors that do not belong to this adapter: "
                f"{', '.join(key[:200] for key in surplus[:5])}. Expected only "
                f"{', '.join(sorted(expected))}" + (f" and those of {', '.join(heads)}." if heads else ".")
            )
        nbytes = sum(entry.nbytes for entry in others.values())
        if len(others) > MOST_IGNORED or nbytes > SMALL:
            raise DamagedAdapterError(
                f"{self.path} has {len(others)} tensors of other adapters with {nbytes} bytes, which no reader "
                f"uses. At most {MOST_IGNORED} with {SMALL} bytes are skipped. Save the adapter again with PEFT 0.21 "
                "or later."
            )


def fingerprint(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp_of(path: Path) -> tuple[int, ...] | None:
    """Return values that change when another file replaces this one, its size last. None without a file."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _is_finite(tensor: torch.Tensor) -> bool:
    pieces = tensor.flatten().split(PIECE)
    if tensor.dtype.itemsize == 1:  # torch.isfinite does not support 8-bit floats
        pieces = tuple(piece.float() for piece in pieces)
    return all(bool(torch.isfinite(piece).all()) for piece in pieces)


def _locate(source: str, subfolder: str | None, place: str, download: Mapping[str, Any]) -> Path | None:
    path = Path(place, SAFETENSORS_WEIGHTS_NAME)
    if path.is_file():
        return path
    if os.path.isdir(place):
        if os.path.isfile(os.path.join(place, WEIGHTS_NAME)):
            raise _pickle_refusal(place)
        return None
    try:
        return Path(hf_hub_download(source, SAFETENSORS_WEIGHTS_NAME, subfolder=subfolder, **download))
    except LocalEntryNotFoundError:  # no connection, and not in the cache
        return None
    except EntryNotFoundError as error:
        name = f"{subfolder}/{WEIGHTS_NAME}" if subfolder else WEIGHTS_NAME
        asked = {key: download.get(key) for key in ("revision", "token")}
        if file_exists(source, name, **asked):
            raise _pickle_refusal(source) from error
        return None


def _pickle_refusal(place: str) -> DamagedAdapterError:
    return DamagedAdapterError(
        f"{place} contains {WEIGHTS_NAME}, expected {SAFETENSORS_WEIGHTS_NAME}: a pickle can run code when opened, so "
        "it is not read. If you trust its origin, convert it once: safetensors.torch.save_file("
        f"torch.load('{WEIGHTS_NAME}', weights_only=True), '{SAFETENSORS_WEIGHTS_NAME}')"
    )
