# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The miniature's records on disk: one line of JSON per run, one file per backbone and task."""

import fcntl
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gated_prompt import GatedPromptError

from .grid import MiniRun

KEY = ("backbone", "task", "variant", "learning_rate", "seed")


def key_of(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the `MiniRun.key` of the recorded run."""
    return tuple(record[name] for name in KEY)


def read(folder: Path, recipe: Mapping[str, Any]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Read all records of a folder by key, ignoring a truncated last line.

    Raises:
        GatedPromptError: a record was made with another recipe, or a line is not a record.
    """
    found = {}
    for file in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(_whole_lines(file), start=1):
            try:
                record = json.loads(line)
                made_with, key = record["recipe"], key_of(record)
            except (ValueError, KeyError, TypeError) as error:
                raise GatedPromptError(f"{file}, line {number} is not a record of a run; remove it") from error
            if made_with != dict(recipe):
                raise GatedPromptError(
                    f"{file}, line {number} was made with the recipe {made_with}, expected {dict(recipe)}; "
                    "give another --output_dir"
                )
            found[key] = record
    return found


def append(folder: Path, run: MiniRun, recipe: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    """Append the record of one run, after removing what an interrupted write has left."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{run.backbone}-{run.task}.jsonl"
    record = {**dict(zip(KEY, run.key, strict=True)), **results, "recipe": dict(recipe)}
    with open(file, "ab+") as out:
        fcntl.flock(out, fcntl.LOCK_EX)  # several processes may write to one folder
        out.seek(0)
        content = out.read()
        out.truncate(content.rfind(b"\n") + 1)
        out.write(json.dumps(record).encode() + b"\n")
    return record


def _whole_lines(file: Path) -> Iterator[str]:
    for line in file.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            yield line
