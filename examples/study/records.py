# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Results on disk: one line of JSON for each record, one file for each task or experiment."""

import fcntl
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gated_prompt import GatedPromptError

Record = dict[str, Any]


def read(file: Path) -> list[Record]:
    """Read the records of a file, ignoring a last line that was cut off. None if the file does not exist.

    Raises:
        GatedPromptError: a line is not a record.
    """
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):
            break
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise GatedPromptError(f"{file}, line {number} is not a JSON object. Remove the line.")
        found.append(record)
    return found


def append(file: Path, record: Mapping[str, Any]) -> None:
    """Add a record; several processes may write to one file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "ab+") as out:
        fcntl.flock(out, fcntl.LOCK_EX)
        out.seek(0)
        out.truncate(out.read().rfind(b"\n") + 1)
        out.write(json.dumps(record).encode() + b"\n")
