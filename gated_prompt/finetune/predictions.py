# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""From pixels to logits with what `gated-prompt train` left, and the file of predictions.

The file grows batch by batch and resumes where it was stopped. Each row names the content of the image and the weights
that it comes from, so that a picture that was replaced and an adapter that was trained again are asked again. Of
several rows of one image and adapter the last counts.
"""

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

import gated_prompt

from ..errors import GatedPromptError
from ..predictor import Predictor
from ..segmentation.predictor import MaskPredictor
from ..sharing.classifier import holds_prompts, load_trained
from .familiarity import Familiar, read_familiar

P = TypeVar("P", Predictor, MaskPredictor)


@dataclass(frozen=True)
class Group(Generic[P]):
    """Predictors by label that see the same pixels, and the module that scores with all of them, a `Scorer`.

    `familiar`: what the probe's training images look like, if that was asked for.
    """

    members: Mapping[str, P]
    module: "Scorer"
    familiar: Familiar | None = None

    @property
    def first(self) -> P:
        return next(iter(self.members.values()))


def make_groups(
    found: Mapping[str, tuple[Path, P]], trust_remote_code: bool = False, unlike: bool = False
) -> list[Group[P]]:
    """One group for all adapters of prompts that share all but names, colours and temperature, and one for each other.

    `unlike`: with what it takes to say how unlike the training images an image is.

    Raises:
        GatedPromptError: a backbone cannot be loaded, what was trained does not fit it, or `unlike` is asked of
            something else than a probe.
    """
    known = {label: read_familiar(folder) for label, (folder, _) in found.items()} if unlike else {}
    shared: dict[str, dict[str, tuple[Path, P]]] = {}
    for label, (folder, one) in found.items():
        same = [
            getattr(one, each.name) for each in fields(one) if each.name not in ("names", "colours", "temperature")
        ]
        same.append(len(one.names))
        shared.setdefault(repr(same) if holds_prompts(folder) else label, {})[label] = (folder, one)
    groups = []
    for members in shared.values():
        folders = [folder for folder, _ in members.values()]
        predictors = {label: one for label, (_, one) in members.items()}
        model = load_trained(folders[0], next(iter(predictors.values())), trust_remote_code)
        familiar = known.get(next(iter(members)))  # each probe is in its own group
        groups.append(Group(predictors, Scorer(model, folders).eval(), familiar))
    return groups


class Scorer(nn.Module):
    """Logits (B, A, K, ...) of the model of one folder, or of A adapters of prompts in one mixed batch."""

    def __init__(self, model: Any, folders: Sequence[Path]) -> None:
        super().__init__()
        self.names = ["default"]
        for folder in folders[1:]:
            self.names.append(f"adapter{len(self.names)}")
            gated_prompt.load(model, folder, self.names[-1])
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        if len(self.names) == 1:
            alone: Tensor = self.model(pixel_values).logits[:, None]
            return alone
        names = [name for name in self.names for _ in range(len(pixel_values))]
        logits: Tensor = self.model(pixel_values.repeat(len(self.names), 1, 1, 1), adapter_names=names).logits
        return logits.unflatten(0, (len(self.names), -1)).transpose(0, 1)

    def with_features(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, 1, K) of a probe, and what its head reads, (B, F)."""
        seen: list[Tensor] = []
        handle = self.model.classifier.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            return self(pixel_values), seen[0]
        finally:
            handle.remove()


DIGITS = 12  # hexadecimal digits of the hashes of contents and weights


def fingerprint(folder: Path) -> str:
    """Return a short hash of the weights and the predictor in this folder."""
    sha = hashlib.sha256()
    for file in (*sorted(folder.glob("*.safetensors")), folder / "predictor.json"):
        sha.update(file.read_bytes())
    return sha.hexdigest()[:DIGITS]


def content_of(path: Path) -> str:
    """Return a short hash of a file. None if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:DIGITS]
    except OSError:
        return ""


class PredictionFile:
    """Rows of image, content, adapter, weights, classes and scores, by the ending of the name as CSV or JSON lines.

    Args:
        path: of the file, which may exist.
        top: classes in a row.
        weights: the fingerprint of each adapter.
        unlike: rows have this column as well.

    Raises:
        GatedPromptError: the file has another ending, holds something else, or cannot be written.
    """

    def __init__(self, path: Path, top: int, weights: Mapping[str, str], unlike: bool = False) -> None:
        self.path, self.is_csv, self.weights = path, path.suffix.lower() == ".csv", weights
        if path.suffix.lower() not in (".csv", ".jsonl"):
            raise GatedPromptError(f"--output {path} has to end in .csv or .jsonl")
        self.first = ["image", "content", "adapter", "weights", "error", *(["unlike"] if unlike else [])]
        self.columns = [*self.first, *(f"{kind}_{i}" for i in range(1, top + 1) for kind in ("class", "score"))]
        self._contents: dict[tuple[str, str], set[str]] = {}
        self._errors: dict[tuple[str, str], str] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_file() and path.stat().st_size:
                self._take_up()
            else:
                path.write_text(self._line(self.columns) if self.is_csv else "", encoding="utf-8")
        except OSError as error:
            raise GatedPromptError(f"cannot write --output {path}: {error.strerror}") from error

    @property
    def images(self) -> set[str]:
        """The images that have a row of one of these adapters, whatever their content was."""
        return {image for image, _ in (*self._contents, *self._errors)}

    def has(self, image: str, adapter: str, content: str) -> bool:
        """Return whether the file has an answer for this content by these weights. An error is not an answer."""
        return content in self._contents.get((image, adapter), ())

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows, on disk when this returns. An error that the file has already is not repeated."""
        new = [row for row in rows if not row.get("error") or row["error"] != self._errors.get(self._key(row))]
        text = "".join(self._text(row) for row in new)
        with open(self.path, "a", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def _take_up(self) -> None:
        """Read what is there, and cut off a row that was left half-written."""
        content = self.path.read_bytes()
        end, found = self._whole_rows(content)
        for row in found:
            if row["weights"] != self.weights.get(row["adapter"]):
                continue
            if row.get("error"):
                self._errors[self._key(row)] = row["error"]
            else:
                self._contents.setdefault(self._key(row), set()).add(row["content"])
        if end < len(content):
            with open(self.path, "r+b") as file:
                file.truncate(end)

    def _whole_rows(self, content: bytes) -> tuple[int, list[dict[str, Any]]]:
        """Where the last whole row ends, and all rows up to there. A row of CSV can have several lines."""
        end = len(content)
        while end := content.rfind(b"\n", 0, end) + 1:
            try:
                return end, self._parse(content[:end].decode("utf-8"))
            except (ValueError, KeyError, TypeError, AttributeError, csv.Error):
                end -= 1
                if content.count(b"\n", end) > len(self.columns):  # longer than one row can be
                    break
        raise GatedPromptError(
            f"{self.path} holds something other than predictions with these options. Give another --output."
        )

    def _parse(self, text: str) -> list[dict[str, Any]]:
        if self.is_csv:
            header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
            if header != self.columns:
                raise ValueError("other columns")
            found = [dict(zip(header, row, strict=True)) for row in rows]
        else:
            found = [json.loads(line) for line in text.split("\n") if line]
        for row in found:
            _ = [row[name] for name in self.first if name != "error" and (name != "unlike" or not row.get("error"))]
        return found

    @staticmethod
    def _key(row: Mapping[str, Any]) -> tuple[str, str]:
        return row["image"], row["adapter"]

    def _text(self, row: Mapping[str, Any]) -> str:
        whole = {**row, "weights": self.weights[row["adapter"]]}
        if not self.is_csv:
            return json.dumps(whole, ensure_ascii=False) + "\n"
        pairs = zip(row.get("classes", []), row.get("scores", []), strict=True)
        flat = [part for pair in pairs for part in pair]
        cells = [*(whole.get(name, "") for name in self.first), *flat]
        return self._line([*cells, *[""] * (len(self.columns) - len(cells))])

    def _line(self, cells: Sequence[Any]) -> str:
        text = io.StringIO()
        odd = any("\r" in str(cell) for cell in cells)  # Python 3.11 does not quote these
        csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL if odd else csv.QUOTE_MINIMAL).writerow(cells)
        return text.getvalue()
