# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The files of the results: one per backbone, and one of the long runs."""

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from gated_prompt.finetune.report import write_json

Results = dict[str, Any]


def read(path: Path) -> Results:
    """What was measured so far."""
    found: Results = json.loads(path.read_text()) if path.is_file() else {}
    return found


def save(path: Path, results: Results) -> None:
    """Write the file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, results)


def machine() -> dict[str, str]:
    """The processor and the versions in use."""
    import peft
    import ray
    import torch
    import transformers

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    cpu = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    versions = {one.__name__: one.__version__ for one in (torch, transformers, peft, ray)}
    return {"cpu": f"{os.cpu_count()} cores of {cpu}", "python": sys.version.split()[0], **versions}
