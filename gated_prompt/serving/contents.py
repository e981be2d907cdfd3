# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The folders that can be served, by their files: an adapter of prompts, a linear probe, or a run that left both."""

import json
from functools import lru_cache
from pathlib import Path

from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

from ..errors import GatedPromptError
from ..files.adapter_file import stamp_of
from ..files.header import read_config, read_header
from ..predictor import FILE, read_predictor
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


def describe(name: str, folder: Path) -> AdapterInfo:
    """What the files of an adapter or probe say, or why they cannot be used."""
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
            raise GatedPromptError(f"{folder} holds an adapter of another method; only gated prompts are served")
        sha256 = config.get("weights_sha256")
        return sha256 if isinstance(sha256, str) else None
    trained = read_header(folder / PROBE)
    if not set(trained) <= {f"{HEAD}.weight", f"{HEAD}.bias"}:
        raise GatedPromptError(f"{folder} holds a backbone that was trained whole; only prompts and probes are served")
    return None


@lru_cache(maxsize=1000)
def _choice(results: Path, stamp: tuple[int, ...] | None) -> str | None:
    """What the results of a run say to use: the name of one of its folders."""
    try:
        name = json.loads(results.read_text(encoding="utf-8"))["use"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return name if isinstance(name, str) and Path(name).name == name and name not in ("", ".", "..") else None
