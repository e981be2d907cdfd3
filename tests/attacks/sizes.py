"""Files that are huge, or claim to be; sparse, so that they take no disk space."""

import json
import os
from pathlib import Path
from typing import Any

from gated_prompt import AdapterMismatchError, ConfigError, DamagedAdapterError

from .attack import CONFIG, PREFIX, TOKENS, WEIGHTS, Attack, Change, header, settings, write

GIB = 2**30


def sparse(name: str, size: int) -> Change:
    return lambda folder: os.truncate(folder / name, size)


def tensor(key: str, shape: list[int], size: int) -> Change:
    """Another F32 tensor, with a hole for its bytes."""
    return header(
        lambda values, end: {**values, key: {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}}, size
    )


def keys(count: int, name: str) -> Change:
    """This many more tensors without values."""

    def change(values: dict[str, Any], end: int) -> dict[str, Any]:
        empty = {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}
        return values | {f"{name}{index}": empty for index in range(count)}

    return header(change)


def long_config(**fields: object) -> Change:
    return lambda folder: (folder / CONFIG).write_text(json.dumps(json.loads((folder / CONFIG).read_text()) | fields))


def behind_a_pending_config(folder: Path) -> None:
    """Checking whether the pending config matches must not read 64 GiB."""
    (folder / "adapter_config.pending.json").write_bytes((folder / CONFIG).read_bytes())
    os.truncate(folder / WEIGHTS, 64 * GIB)


SPACES = b"{" + b" " * 2**22 + b"}"
ATTACKS = {
    "64-GiB": Attack(sparse(WEIGHTS, 64 * GIB), DamagedAdapterError, "but its header describes"),
    "64-GiB-behind-a-pending-config": Attack(behind_a_pending_config, DamagedAdapterError, "but its header describes"),
    "64-GiB-of-prompts": Attack(
        tensor(f"{TOKENS}_a", [1, 3, 2**34 // 3], 2**34 // 3 * 12), DamagedAdapterError, "do not belong"
    ),
    "64-GiB-in-the-head": Attack(
        tensor(f"{PREFIX}classifier.scale", [16 * GIB], 64 * GIB), AdapterMismatchError, "holds classifier.scale"
    ),
    "1-GiB-of-another-adapter": Attack(
        tensor(f"{TOKENS}.x", [GIB // 4], GIB), DamagedAdapterError, "tensors of other adapters"
    ),
    "1-GiB-where-nothing-belongs": Attack(
        tensor(f"{PREFIX}vit.x", [GIB // 4], GIB), DamagedAdapterError, "do not belong"
    ),
    "100000-keys": Attack(keys(100_000, f"{TOKENS}.x"), DamagedAdapterError, "its header has"),
    "5000-keys": Attack(keys(5000, f"{TOKENS}.x"), DamagedAdapterError, "5000 tensors of other adapters"),
    "config-of-400-MB": Attack(sparse(CONFIG, 400_000_000), DamagedAdapterError, "is longer than", False),
    "config-of-spaces": Attack(write(CONFIG, SPACES), DamagedAdapterError, "is longer than", False),
    "long-name": Attack(long_config(base_model_name_or_path="x" * 2**20), DamagedAdapterError, "is longer than", True),
    "many-blocks": Attack(
        settings(gated_blocks=list(range(1001))),
        ConfigError,
        r"gated_blocks is \[0, .*\.\.\.\. Expected None or a list of at",
    ),
    "many-heads": Attack(settings(modules_to_save=["classifier"] * 1001), ConfigError, "modules_to_save is"),
    "a-million-blocks": Attack(
        settings(num_layers=2**20 - 1), DamagedAdapterError, "has shape .* but its adapter_config.json requires"
    ),
    "a-million-deep": Attack(
        settings(num_layers=2**20 - 1, deep=True, num_virtual_tokens=2**20 - 1, temperature=False),
        DamagedAdapterError,
        r"requires \(1048575, 1048575, 32\)",
    ),
}
