# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What a result depends on, and how runs are found again: weights, data, recipe, and the records on disk.

    <folder>/results/<name>.json    key, settings and results of one run that has ended

A record counts for a run only where its key is the same: other weights under the same path, or another copy of the
data, give another key.
"""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tqdm import tqdm
from transformers.utils import cached_file

from gated_prompt.data.hub import HubImages
from gated_prompt.errors import DataError, GatedPromptError
from gated_prompt.images import ImageFiles, LabelledImages

# Raised whenever a change of this code changes what a run computes. 2: VTAB's images as TensorFlow 1 resizes them.
RECIPE = 2
SAMPLED = 64  # images whose content goes into a fingerprint. Of all others name, size and label do
FAILURE = "GATED_PROMPT_FAILURE_FILE"  # environment variable: where a script says what kind of error ended it
CONVERSION = "conversion.json"  # what `gated-prompt convert` has recorded
KNOWN = {  # beginnings of the MD5 of the published checkpoints, from the VPT repository
    "8cad7c": "MAE, mae_pretrain_vit_base.pth",
    "8f39ce": "MoCo v3, linear-vit-b-300ep.pth.tar",
}
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def weight_files(backbone: str) -> list[Path]:
    """The files with a backbone's weights, the index first where they are in several.

    Raises:
        GatedPromptError: there are none in the folder, or in the cache and on the Hub.
    """
    folder = Path(os.path.expandvars(backbone))
    for name in WEIGHTS:
        found = _file(folder, backbone, name)
        if found is not None and name.endswith(".json"):
            parts = sorted(set(json.loads(found.read_text())["weight_map"].values()))
            return [found, *(part for each in parts if (part := _file(folder, backbone, each)) is not None)]
        if found is not None:
            return [found]
    raise GatedPromptError(f"no weights of --backbone {backbone!r}: none of {', '.join(WEIGHTS)} is there")


def _file(folder: Path, backbone: str, name: str) -> Path | None:
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    with suppress(OSError):
        found = cached_file(backbone, name, _raise_exceptions_for_missing_entries=False)
        return None if found is None else Path(found)
    return None


def identity_of(backbone: str) -> dict[str, str]:
    """SHA-256 of a backbone's weights, and of its settings (config.json and preprocessor_config.json).

    Raises:
        GatedPromptError: see `weight_files`.
    """
    folder = Path(os.path.expandvars(backbone))
    names = ("config.json", "preprocessor_config.json")
    settings = [file for name in names if (file := _file(folder, backbone, name)) is not None]
    return {"weights": _digest(weight_files(backbone)), "backbone_settings": _digest(settings)}


def _digest(files: list[Path]) -> str:
    """That of the file. Of several, the SHA-256 of all their digests."""
    found = [_sha256(file, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()


@cache
def _sha256(file: Path, size: int, changed: int) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


@dataclass
class WeightsReport:
    """`checkpoint`: the published file that these weights come from, None if unknown. `faults`: what is wrong."""

    backbone: str
    sha256: str
    checkpoint: str | None = None
    md5: str | None = None
    tensors: int = 0
    faults: list[str] = field(default_factory=list)

    def text(self) -> str:
        origin = self.checkpoint or "no published file of the paper"
        return f"Weights: {self.backbone}, SHA-256 {self.sha256}, from {origin} (MD5 {self.md5 or 'not recorded'})."


def check_weights(backbone: str) -> WeightsReport:
    """Hash the weights, compare their origin with the published files, and look for values that are not finite.

    Raises:
        GatedPromptError: the backbone has no weights.
    """
    report = WeightsReport(backbone, identity_of(backbone)["weights"])
    record = Path(backbone) / CONVERSION
    if record.is_file():
        content = json.loads(record.read_text())
        report.md5 = content["md5"]
        report.checkpoint = KNOWN.get(content["md5"][:6])
        if content["weights_sha256"] != report.sha256:
            report.checkpoint = None
            report.faults.append(f"{backbone}: the weights are not those that {CONVERSION} says were converted")
    for file in weight_files(backbone):
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  # not a dictionary
                    report.tensors += 1
                    if not torch.isfinite(tensors.get_tensor(name)).all():
                        report.faults.append(f"{file.name}: {name} contains NaN or infinite values")
    return report


def fingerprint(data: LabelledImages) -> str:
    """SHA-256 over names, labels and sizes of all images, and the content of 64 of them. The folder does not count.

    Raises:
        DataError: an image is missing.
    """
    images = data.images
    digest = hashlib.sha256(json.dumps([data.provenance.dataset, len(data), list(data.labels)]).encode())
    if isinstance(images, ImageFiles):
        for index, path in enumerate(images.paths):
            try:
                digest.update(f"{path.parent.name}/{path.name} {path.stat().st_size}\n".encode())
            except OSError:
                raise DataError(f"The image {images.name(index)} is missing.") from None
    for index in sorted({round(i * (len(data) - 1) / (SAMPLED - 1)) for i in range(SAMPLED)} if len(data) else ()):
        digest.update(stored_bytes(images, index))
    return digest.hexdigest()


def stored_bytes(images: Any, index: int) -> bytes:
    """The content of an image's file, or its pixels if it has no file."""
    if isinstance(images, ImageFiles):
        return images.paths[index].read_bytes()
    if isinstance(images, HubImages):
        found = images.stored(index)
        return found if isinstance(found, bytes) else found.read_bytes()
    return bytes(images[index].tobytes())


def machine() -> dict[str, Any]:
    """Where a result was computed: host, commit of this code, CUDA, driver, and the precision of float32."""
    return {
        "host": platform.node(),
        "commit": _said(["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]),
        "cuda": torch.version.cuda,
        "driver": _said(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
        "tf32": torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32,
        "recipe": RECIPE,
    }


def _said(command: list[str]) -> str | None:
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.partition("\n")[0]
    return None


@contextmanager
def failure_is_noted() -> Iterator[None]:
    """Write the kind of error that ends a script to where `FAILURE` says, so that a table can tell data from bugs."""
    try:
        yield
    except GatedPromptError as error:
        if FAILURE in os.environ:
            Path(os.environ[FAILURE]).write_text(json.dumps({"kind": type(error).__name__, "message": str(error)}))
        raise


def raise_if_diverged(results: Mapping[str, Any]) -> None:
    """Raises:
    GatedPromptError: the run ended in NaN. Its results.json says so too.
    """
    if results.get("diverged"):
        raise GatedPromptError(
            f"the run diverged: loss or parameters are not finite after epoch {results['diverged']}, so there is no "
            "accuracy. Lower --learning_rate."
        )


def read_records(folder: Path, name: str = "*.json") -> dict[str, dict[str, Any]]:
    """Results by the key that they belong to (`Run.key`), from the records in `folder`. Damaged ones are left out."""
    found = {}
    for file in sorted((folder / "results").glob(name)):
        try:
            record = json.loads(file.read_text())
            found[json.dumps(record["key"], sort_keys=True)] = dict(record["results"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            tqdm.write(f"{file} is not a record of a run of this version ({error}), so the run is repeated.")
    return found
