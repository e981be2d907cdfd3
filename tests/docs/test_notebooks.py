# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The notebooks run from top to bottom with the shipped backbone, without Jupyter and without a download."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from helpers.pages import ROOT

NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
PRINTED = {  # the last lines
    "many_tasks": ["digit-2.png digits 2", "star.png shapes star", "unchanged"],
    "own_images": ["Use ", "report.html", "digit 2 "],
    "peft_five_lines": ["trainable params: ", "before training", "after 8 steps: 0."],
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "notebook"}
    with redirect_stdout(io.StringIO()) as printed:
        for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                assert cell["outputs"] == [], "clear the outputs before committing"
                exec(compile("".join(cell["source"]), file.name, "exec"), names)
    lines = [line for line in PRINTED[file.stem] if line not in printed.getvalue()]
    assert not lines, printed.getvalue()
