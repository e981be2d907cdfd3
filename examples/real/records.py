# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The results on disk: one JSON file for each cell, written atomically."""

import json
from pathlib import Path
from typing import Any

from gated_prompt.finetune.reporting import write_json


def path_of(folder: Path, task: str, name: str) -> Path:
    """Where the cell of this task and name is."""
    return folder / task / f"{name}.json"


def write(file: Path, content: dict[str, Any]) -> None:
    """Replace the file in one step."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, content)


def read(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """All cells by task and name."""
    return {
        (file.parent.name, file.stem): json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(folder.glob("*/*.json"))
    }
