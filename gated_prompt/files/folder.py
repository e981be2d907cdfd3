# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The folder of an adapter and its config: written atomically, by one process at a time; read while others write.

The config records the SHA-256 of the weights saved with it. Weights and config are two files: a save that is killed
between them leaves new weights beside an old config, each of which is valid alone.
"""

import json
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME

from ..errors import AdapterMismatchError, DamagedAdapterError, GatedPromptError, UnsupportedOperationError
from .adapter_file import FINGERPRINT, fingerprint, stamp_of
from .header import read_config, read_header, shown

PENDING_NAME = "adapter_config.pending.json"  # the config of a save that is not finished
LOCK_NAME = ".gated_prompt.lock"
PATIENCE = 10.0  # seconds that a reader retries while others save
WAIT = 60.0  # seconds that a process waits for others to finish saving
T = TypeVar("T")


def read_settings(path: Path, method: str, own: set[str], known: set[str]) -> dict[str, Any]:
    """Return the fields of an adapter's config, or of the pending config beside it if that one matches the weights.

    Args:
        path: path of `adapter_config.json`.
        method: the expected `peft_type`.
        own: fields of this method. A file without one of them is from another version or was written by hand.
        known: these, and the fields of every PEFT config.

    Raises:
        DamagedAdapterError: the file cannot be read, is not a JSON object, repeats a key, or has a misspelt field.
        AdapterMismatchError: it is the config of another PEFT method.
    """
    file, values = _current(path)
    found = values.get("peft_type")
    if found is None:
        raise DamagedAdapterError(
            f"{file} lacks 'peft_type', expected {method!r}. Save or download the adapter again."
        )
    if found != method:
        raise AdapterMismatchError(
            f"{file} has peft_type {shown(found)}, expected {method!r}. It belongs to another PEFT method. Load it "
            "with peft.PeftModel.from_pretrained."
        )
    tolerance = values.pop("gate_tolerance", 0.0)  # a field of version 0.1.0
    if tolerance != 0.0:
        warnings.warn(
            f"{file} has gate_tolerance={shown(tolerance)}, which is no longer a setting of an adapter and is "
            "ignored. After loading, call gated_prompt.prune(model, gate_tolerance).",
            stacklevel=2,
        )
    unknown, missing = sorted(values.keys() - known), sorted(own - values.keys())
    # Unknown fields alone mean a newer version, and PEFT warns. Missing ones alone mean an older one, and the defaults
    # apply. Both together mean that a field was renamed, and the default would silently replace its value.
    if unknown and missing:
        raise DamagedAdapterError(
            f"{file} has the unknown field(s) {', '.join(map(shown, unknown[:5]))} and lacks {', '.join(missing)}. "
            "A field is misspelt or damaged. Correct it, or save or download the adapter again."
        )
    return values


def _current(path: Path) -> tuple[Path, dict[str, Any]]:
    """Return the config that belongs to the weights. `sharing/saving.py` explains the pending one."""
    pending, weights = path.with_name(PENDING_NAME), path.with_name(SAFETENSORS_WEIGHTS_NAME)
    if pending.is_file() and weights.is_file():
        values = read_config(pending)
        read_header(weights)  # refuses oversized files before spending time on a hash
        if values.get(FINGERPRINT) == fingerprint(weights):
            return pending, values
    return path, read_config(path)


def write_settings(folder: Path, values: dict[str, Any], of_weights: bool) -> None:
    """Write the config. `of_weights`: record that it belongs to the weights in this folder.

    Raises:
        GatedPromptError: another process kept saving into this folder.
        UnsupportedOperationError: the weights were saved as a pickle.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, weights, pickle = (folder / name for name in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME))
    with locked(folder):
        if of_weights and pickle.is_file() and _saved_at(pickle) >= _saved_at(weights):
            # Nothing reads it: PEFT would load older safetensors beside it instead.
            raise UnsupportedOperationError(
                f"{pickle} is a pickle, which can run code when it is opened and is never read. Save again without "
                "safe_serialization=False."
            )
        sha256 = fingerprint(weights) if of_weights and weights.is_file() else None
        replace_text(path, json.dumps(values | {FINGERPRINT: sha256}, indent=2, sort_keys=True))
        path.with_name(PENDING_NAME).unlink(missing_ok=True)


def _saved_at(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0


def replace_text(path: Path, text: str) -> None:
    """Replace a file atomically: write a temporary file and rename it, so readers find the old or the new one."""
    temporary = path.with_name(
        f".{path.name}.tmp"
    )  # a fixed name, so the next save overwrites the rest of a killed one
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock `folder` for saving. Other processes and threads wait for at most `WAIT` seconds.

    The operating system releases the lock of a killed process. The lock file is deleted while the lock is still held:
    waiting processes notice that and create a new one.

    Raises:
        GatedPromptError: others did not finish in time.
    """
    lock = FileLock(folder / LOCK_NAME, timeout=WAIT, poll_interval=0.01)
    try:
        lock.acquire()
    except Timeout as error:
        raise GatedPromptError(
            f"another process has been saving into {folder} for {WAIT:.0f} s. Wait for it, or give another folder."
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows cannot delete open files
            os.unlink(folder / LOCK_NAME)
        lock.release()


def read_undisturbed(folder: Path, read: Callable[[], T]) -> T:
    """Repeat `read` until nothing replaced the adapter in `folder` meanwhile, and return or raise its last result.

    Works without a lock, since the folder may be read-only.

    Raises:
        DamagedAdapterError: the adapter was replaced repeatedly for `PATIENCE` seconds.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        before, fault = _stamps(folder), None
        try:
            found = read()
        except GatedPromptError as error:
            fault = error
        if _stamps(folder) == before:
            if fault is not None:
                raise fault
            return found
        if time.monotonic() > deadline:
            raise DamagedAdapterError(
                f"the adapter in {folder} was replaced repeatedly for {PATIENCE:.0f} s while it was being read. Load "
                "it after others have finished saving."
            ) from fault
        time.sleep(0.005)


def _stamps(folder: Path) -> list[tuple[int, ...] | None]:
    return [stamp_of(folder / name) for name in (CONFIG_NAME, PENDING_NAME, SAFETENSORS_WEIGHTS_NAME)]
