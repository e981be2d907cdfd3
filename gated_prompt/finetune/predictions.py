# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""A CSV or JSONL file of predictions that grows batch by batch and resumes where it was stopped.

Each row names the weights that it comes from, so that an adapter that was trained again is asked again.
"""

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import GatedPromptError


def fingerprint(folder: Path) -> str:
    """Twelve hexadecimal digits that change with the weights and the predictor in this folder."""
    sha = hashlib.sha256()
    for file in (*sorted(folder.glob("*.safetensors")), folder / "predictor.json"):
        sha.update(file.read_bytes())
    return sha.hexdigest()[:12]


class PredictionFile:
    """Rows of image, adapter, weights, classes and scores, by the ending of the name as CSV or JSON lines.

    `weights`: the fingerprint of each adapter. `done` holds the pairs of image and adapter that have a row with these
    weights.

    Raises:
        GatedPromptError: the file has another ending, holds something else, or cannot be written.
    """

    def __init__(self, path: Path, top: int, weights: Mapping[str, str]) -> None:
        self.path, self.is_csv, self.weights = path, path.suffix.lower() == ".csv", weights
        if path.suffix.lower() not in (".csv", ".jsonl"):
            raise GatedPromptError(f"--output {path} has to end in .csv or .jsonl")
        columns = ["image", "adapter", "weights", "error"]
        self.columns = [*columns, *(f"{kind}_{i}" for i in range(1, top + 1) for kind in ("class", "score"))]
        self.done: set[tuple[str, str]] = set()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_file() and path.stat().st_size:
                self._take_up()
            else:
                path.write_text(self._line(self.columns) if self.is_csv else "", encoding="utf-8")
        except OSError as error:
            raise GatedPromptError(f"cannot write --output {path}: {error.strerror}") from error

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows, on disk when this returns."""
        text = "".join(self._text(row) for row in rows)
        with open(self.path, "a", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def _take_up(self) -> None:
        """Read what is there, and cut off a line that was left half-written."""
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        try:
            lines = whole.decode("utf-8").splitlines()
            if self.is_csv:
                header, *rows = csv.reader(lines)
                found = [dict(zip(header, row, strict=True)) for row in rows]
                fits = header == self.columns
            else:
                found = [json.loads(line) for line in lines]
                fits = True
            rows_by_weights = [(row["image"], row["adapter"], row["weights"]) for row in found]
            self.done = {(image, name) for image, name, sha in rows_by_weights if sha == self.weights.get(name)}
        except (ValueError, KeyError, TypeError, AttributeError):
            fits = False
        if not fits:
            raise GatedPromptError(
                f"{self.path} holds something else than predictions with this --top; give another --output"
            )
        if len(whole) < len(content):
            with open(self.path, "r+b") as file:
                file.truncate(len(whole))

    def _text(self, row: Mapping[str, Any]) -> str:
        if not self.is_csv:
            return json.dumps({**row, "weights": self.weights[row["adapter"]]}, ensure_ascii=False) + "\n"
        pairs = zip(row.get("classes", []), row.get("scores", []), strict=True)
        flat = [part for pair in pairs for part in pair]
        cells = [row["image"], row["adapter"], self.weights[row["adapter"]], row.get("error", ""), *flat]
        return self._line([*cells, *[""] * (len(self.columns) - len(cells))])

    def _line(self, cells: Sequence[Any]) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(cells)
        return text.getvalue()
