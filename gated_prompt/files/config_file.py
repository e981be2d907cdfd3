# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Read and write `adapter_config.json`: strictly, and never half.

The config holds the SHA-256 of the weights that it was saved with. Weights and config are two files, so a save that
was killed between them leaves new weights beside an old config, and both may be fine in themselves.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from peft.utils import SAFETENSORS_WEIGHTS_NAME

from ..errors import AdapterMismatchError, DamagedAdapterError
from ..registration import NAME

FINGERPRINT = "weights_sha256"
PENDING_NAME = "adapter_config.pending.json"  # the config of a save whose last step is still to come


def read_config_file(path: str, own_fields: set[str], known_fields: set[str]) -> dict[str, Any]:
    """The fields in an adapter's config file, or in the pending config beside it where that fits the weights.

    Args:
        path: place of `adapter_config.json`.
        own_fields: fields of this method; a file that lacks one of them is from another version or written by hand.
        known_fields: these, and the fields of every PEFT config.

    Raises:
        DamagedAdapterError: the file cannot be read, is no JSON object, repeats a key, or has a field misspelt.
        AdapterMismatchError: it is the config of another PEFT method.
    """
    file = _current(Path(path))
    values = _parse(file)
    method = values.get("peft_type")
    if method is None:
        raise DamagedAdapterError(f"{file} lacks 'peft_type', expected {NAME!r}; save or download the adapter again")
    if method != NAME:
        raise AdapterMismatchError(
            f"{file} has peft_type {method!r}, expected {NAME!r}; it belongs to another PEFT method: load it with "
            "peft.PeftModel.from_pretrained"
        )
    unknown, missing = sorted(values.keys() - known_fields), sorted(own_fields - values.keys())
    # Either alone is a newer or an older version, where PEFT warns or the defaults hold. Both together: a field got
    # another name, and its value would be replaced by the default.
    if unknown and missing:
        raise DamagedAdapterError(
            f"{file} has the unknown field(s) {', '.join(map(repr, unknown))} and lacks {', '.join(missing)}; "
            "a field is misspelt or damaged: correct it, or save or download the adapter again"
        )
    return values


def write_config_file(path: Path, values: dict[str, Any]) -> None:
    """Write the config beside its place and move it there, so that a reader finds the old file or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")  # a fixed name: what a killed save left is overwritten by the next
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(json.dumps(values, indent=2, sort_keys=True))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    path.with_name(PENDING_NAME).unlink(missing_ok=True)


def fingerprint(data: bytes) -> str:
    """SHA-256 of a weights file, in hex."""
    return hashlib.sha256(data).hexdigest()


def _current(path: Path) -> Path:
    """The config that belongs to the weights: see `saving.py` for how a pending one comes about."""
    pending, weights = path.with_name(PENDING_NAME), path.with_name(SAFETENSORS_WEIGHTS_NAME)
    if not (pending.is_file() and weights.is_file()):
        return path
    fits = _parse(pending).get(FINGERPRINT) == fingerprint(weights.read_bytes())
    return pending if fits else path


def _parse(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes().decode("utf-8"), object_pairs_hook=_unique)
    except (OSError, ValueError, RecursionError) as error:  # ValueError: of JSON, of UTF-8, of numbers too long
        raise DamagedAdapterError(f"{path} is not valid JSON ({error}); save or download the adapter again") from error
    if not isinstance(values, dict):
        raise DamagedAdapterError(
            f"{path} holds a {type(values).__name__}, expected a JSON object; save or download the adapter again"
        )
    return values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"repeated key {next(key for key in keys if keys.count(key) > 1)!r}")
    return values
