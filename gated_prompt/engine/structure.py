# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What adapters must have in common to be rows of one graph."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
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
        prompts: settings of `GatedPromptConfig`. None if there are only probes.
        reads, blocks: as `heads.TokenClassifier` has them. `reads` None means the features of the backbone's own
            class.
        preparation: as `Predictor` has it.
    """

    prompts: dict[str, Any] | None
    reads: Reads | None
    blocks: list[int] | None
    preparation: dict[str, Any]

    @property
    def pads(self) -> bool:
        """Whether a row may begin or end at other blocks: zero-start prompts with gates of 0 add nothing there."""
        prompts = self.prompts or {}
        low, high = prompts.get("temperature_range", (1, 1))
        neutral = low <= 1 <= high if prompts.get("temperature") else prompts.get("temperature_init") == 1.0
        return bool(prompts.get("zero_start")) and neutral

    def span(self, depth: int) -> tuple[int, int]:
        """The first and the last block with prompts, of a backbone with `depth` blocks."""
        prompts = self.prompts or {}
        read_from = prompts.get("read_from")
        return prompts.get("insert_at", 0), depth - 1 if read_from is None else read_from

    def check(self, other: "Structure", name: str, depth: int) -> None:
        """Raises:
        AdapterMismatchError: the adapter `name`, whose structure is `other`, cannot be a row of this graph.
        """
        mine, its = _flat(asdict(self)), _flat(asdict(other))
        if self.pads:
            (first, last), (begins, ends) = self.span(depth), other.span(depth)
            if other.prompts is None:  # a probe is zero-start prompts that add nothing
                its |= {key: mine[key] for key in self.prompts or {}} | {"prompts": True}
            elif first <= begins and ends <= last:
                its |= {key: mine[key] for key in ("insert_at", "read_from")}
        if other.blocks is not None and set(other.blocks) <= set(self.blocks or ()):
            its["blocks"] = self.blocks  # the head has zeros for blocks that it does not read
        for key in mine | its:
            if mine.get(key) != its.get(key):
                raise AdapterMismatchError(
                    f"{name} has {key}={its.get(key)!r}, but the engine has {mine.get(key)!r}. Export another engine "
                    "for it, or all of them together, which joins the blocks that they read."
                )


def joined(structures: Mapping[str, Structure], depth: int) -> Structure:
    """The structure of a graph for all of these: it reads the blocks of each, and runs as far as the furthest.

    Raises:
        AdapterMismatchError: no graph can have them all as rows.
    """
    whole = next((one for one in structures.values() if one.prompts), next(iter(structures.values())))
    if all(one.blocks is not None for one in structures.values()):
        blocks = sorted({block for one in structures.values() for block in one.blocks or ()})
        whole = replace(whole, blocks=blocks)
        if whole.prompts is not None and whole.pads:
            spans = [one.span(depth) for one in structures.values() if one.prompts]
            last = max(blocks[-1], *(ends for _, ends in spans))
            ends_early = None if last == depth - 1 else last
            prompts = {**whole.prompts, "insert_at": min(begins for begins, _ in spans), "read_from": ends_early}
            whole = replace(whole, prompts=prompts)
    for name, one in structures.items():
        whole.check(one, name, depth)
    return whole


def structure_of(
    config: GatedPromptConfig | None, predictor: Predictor, blocks: tuple[int, ...] | None, depth: int
) -> Structure:
    """The structure of an adapter, or of a probe if `config` is None. `blocks`: those that its head reads."""
    prompts = None
    if blocks is None and predictor.reads is not None and (config is None or config.pooling is None):
        blocks = (depth - 1 if config is None or config.read_from is None else config.read_from,)
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
