# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The folders that can be served: an adapter of prompts, a linear probe, or a run that left both.

`describe` says what the files of one claim; `read_files` reads them, checked, and split into prompts and head.
"""

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from torch import Tensor

from ..config import GatedPromptConfig
from ..errors import AdapterMismatchError, GatedPromptError
from ..files.adapter_file import AdapterFile, stamp_of
from ..files.folder import read_undisturbed
from ..files.header import UNREADABLE, read_config, read_header
from ..files.layout import BANK, PREFIX
from ..predictor import FILE, Predictor, read_predictor
from ..sharing.card import last_part
from ..sharing.loading import checked

if TYPE_CHECKING:
    from .schemas import AdapterInfo

PROBE = "trained.safetensors"  # the head of a probe. Also what methods other than prompts have trained
HEAD = "classifier"  # its name there
CARD, RESULTS = "README.md", "results.json"
FILES = (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, PROBE, FILE, CARD)
LONGEST_CARD = 100_000  # characters


def used(folder: Path) -> Path:
    """The folder itself, or, of the output folder of `train`, the one in it that the run said to use."""
    if (folder / FILE).is_file() or (folder / CONFIG_NAME).is_file():
        return folder
    name = _choice(folder / RESULTS, stamp_of(folder / RESULTS))
    return folder if name is None else folder / name


def is_servable(folder: Path) -> bool:
    """Whether there is an adapter or a probe, whole or damaged."""
    return (folder / CONFIG_NAME).is_file() or (folder / PROBE).is_file()


def describe(name: str, folder: Path) -> "AdapterInfo":
    """What the files of an adapter or probe say, or why they cannot be used."""
    from .schemas import AdapterInfo  # here: the pool needs no pydantic

    try:
        predictor = read_predictor(folder)
        sha256 = _check_kind(folder)
    except GatedPromptError as error:
        return AdapterInfo(name=name, error=str(error))
    card = folder / CARD
    return AdapterInfo(
        name=name,
        classes=predictor.names,
        problem=predictor.problem,
        sha256=sha256,
        card=card.read_text(encoding="utf-8", errors="replace")[:LONGEST_CARD] if card.is_file() else None,
    )


def _check_kind(folder: Path) -> str | None:
    """SHA-256 of the weights, according to the config of an adapter.

    Raises:
        GatedPromptError: it is neither an adapter of gated prompts nor a probe.
    """
    if (folder / CONFIG_NAME).is_file():
        config = read_config(folder / CONFIG_NAME)
        if config.get("peft_type") != "GATED_PROMPT":
            raise GatedPromptError(f"{folder} holds an adapter of another method. Only gated prompts are served.")
        sha256 = config.get("weights_sha256")
        return sha256 if isinstance(sha256, str) else None
    trained = read_header(folder / PROBE)
    if not set(trained) <= {f"{HEAD}.weight", f"{HEAD}.bias"}:
        raise GatedPromptError(
            f"{folder} holds a backbone that was trained whole. Only prompts and probes are served."
        )
    return None


@lru_cache(maxsize=1000)
def _choice(results: Path, stamp: tuple[int, ...] | None) -> str | None:
    """What the results of a run say to use: the name of one of its folders."""
    try:
        name = json.loads(results.read_text(encoding="utf-8"))["use"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return name if isinstance(name, str) and Path(name).name == name and name not in ("", ".", "..") else None


Head = tuple[Tensor, Tensor | None]  # weight (K, F) and bias (K,)


@dataclass(frozen=True)
class Files:
    """An adapter as its files have it, or a probe, which is a head alone.

    Attributes:
        predictor: its class names, its preprocessing and what its head reads.
        config, prompts: of the adapter without its head, and tensors by their keys. None and nothing for a probe.
        head: weight (K, F) and bias (K,), or None, in float32.
        trained_on: last part of the backbone's name. Empty: unknown.
        sha256: of its weights file, according to its config.
        nbytes: memory of its tensors.
    """

    predictor: Predictor
    config: GatedPromptConfig | None
    prompts: dict[str, Tensor]
    head: Head
    trained_on: str
    sha256: str | None
    nbytes: int


def read_files(folder: Path, device: torch.device) -> Files:
    """Read an adapter or a probe.

    Raises:
        GatedPromptError: its files are damaged, or it has no single linear head.
    """
    predictor = read_predictor(folder)
    if not (folder / CONFIG_NAME).is_file() and (folder / PROBE).is_file():
        return _read_probe(folder, predictor, device)
    with checked(str(folder)) as (config, _):
        if not config.weights_file.is_small:
            config.weights_file.check_content()  # of large files, only the header was read so far
        path = config.weights_file.path
        loaded = load_file(path, device=str(device)) if path is not None else {}
        tensors = {key: loaded[key] for key in config.weights_file.entries}  # without those of other adapters
        # A copy without the head, which the pool applies, and without the backbone's location.
        own = replace(config, modules_to_save=[])
        own.base_model_name_or_path, own.inference_mode = None, True
    heads = config.modules_to_save or []
    return Files(
        predictor,
        own,
        {key: value for key, value in tensors.items() if key.startswith(f"{PREFIX}{BANK}.")},
        _head(folder, [f"{PREFIX}{one}" for one in heads], tensors, predictor),
        last_part(config.base_model_name_or_path),
        config.weights_sha256,
        memory_of(config.weights_file),
    )


def _read_probe(folder: Path, predictor: Predictor, device: torch.device) -> Files:
    def read() -> dict[str, Tensor]:
        read_header(folder / PROBE)  # what the file claims fits its size
        return load_file(folder / PROBE, device=str(device))

    try:
        tensors = read_undisturbed(folder, read)
    except UNREADABLE as error:
        raise AdapterMismatchError(f"cannot read {folder / PROBE} ({error}). Train again.") from error
    head = _head(folder, [HEAD], tensors, predictor)
    nbytes = sum(4 * tensor.numel() for tensor in tensors.values())
    return Files(predictor, None, {}, head, last_part(predictor.backbone), None, nbytes)


def memory_of(file: AdapterFile) -> int:
    """Bytes of memory that an adapter takes, from its header: prompts and head are kept in float32."""
    return sum(4 * torch.Size(entry.shape).numel() for entry in file.entries.values())


def _head(folder: Path, heads: list[str], tensors: dict[str, Tensor], predictor: Predictor) -> Head:
    """Weight (K, F) and bias (K,), or None, of the only head, whose keys begin with its name.

    Raises:
        AdapterMismatchError: the head is not a single linear layer, or does not match the number of its names.
    """
    keys = [f"{heads[0]}.weight", f"{heads[0]}.bias"] if len(heads) == 1 else []
    others = [key for key in tensors if not key.startswith(f"{PREFIX}{BANK}.") and key not in keys]
    if not keys or keys[0] not in tensors or tensors[keys[0]].ndim != 2 or others:
        names = ", ".join(head.removeprefix(PREFIX) for head in heads)
        raise AdapterMismatchError(f"{folder} has the head(s) {names or 'none'}. It needs a single linear layer.")
    weight, bias = tensors[keys[0]], tensors.get(keys[1])
    if len(weight) != len(predictor.names) or (bias is not None and bias.shape != weight.shape[:1]):
        raise AdapterMismatchError(
            f"{folder / FILE} names {len(predictor.names)} classes, but the head has {len(weight)}. They must come "
            "from the same training."
        )
    return weight.float(), None if bias is None else bias.float()
