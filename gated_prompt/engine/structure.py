# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What adapters must have in common to be rows of one graph."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..config import GatedPromptConfig
from ..errors import AdapterMismatchError
from ..heads import Reads
from ..predictor import Predictor

# Settings that decide which operations a forward has. Others are values of tensors, or matter in training only.
SHARED = (
    "num_virtual_tokens",
    "insert_at",
    "read_from",
    "deep",
    "zero_start",
    "gates",
    "gated_blocks",
    "hard_gates",
    "temperature",
    "temperature_range",
    "pooling",
    "num_prefix_tokens",
)


@dataclass(frozen=True)
class Structure:
    """The operations of a forward, and how images become its pixels.

    Attributes:
        prompts: settings of `GatedPromptConfig`. None: probes alone.
        reads, blocks: as `heads.TokenClassifier` has them. `reads` None: the features of the backbone's own class.
        preparation: as `Predictor` has it.
    """

    prompts: dict[str, Any] | None
    reads: Reads | None
    blocks: list[int] | None
    preparation: dict[str, Any]

    def check(self, other: "Structure", name: str) -> None:
        """Raises:
        AdapterMismatchError: the adapter `name`, whose structure is `other`, cannot be a row of this graph.
        """
        mine, its = asdict(self), asdict(other)
        if its["prompts"] is None and (mine["prompts"] or {}).get("zero_start"):
            its["prompts"] = mine["prompts"]  # a probe is zero-start prompts that add nothing
        mine, its = _flat(mine), _flat(its)
        for key in mine | its:
            if mine.get(key) != its.get(key):
                raise AdapterMismatchError(
                    f"{name} has {key}={its.get(key)!r}, the engine {mine.get(key)!r}; one graph takes adapters of "
                    "one structure, so export another engine for it"
                )


def structure_of(config: GatedPromptConfig | None, predictor: Predictor, blocks: tuple[int, ...] | None) -> Structure:
    """The structure of an adapter, or of a probe if `config` is None. `blocks`: those that its head reads."""
    prompts = None
    if config is not None:
        prompts = {name: getattr(config, name) for name in SHARED}
        prompts["temperature_range"] = list(prompts["temperature_range"])
        if not config.temperature:
            prompts["temperature_init"] = config.temperature_init
    return Structure(prompts, predictor.reads, None if blocks is None else list(blocks), _plain(predictor.preparation))


def _plain(preparation: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in preparation.items()}


def _flat(structure: dict[str, Any]) -> dict[str, Any]:
    """Its settings without a level below."""
    prompts = structure["prompts"] or {}
    return {"prompts": bool(prompts), **prompts, **structure["preparation"]} | {
        name: structure[name] for name in ("reads", "blocks")
    }
