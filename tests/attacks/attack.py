"""What an attack is, and the functions to build one."""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
TOKENS, HEAD = f"{PREFIX}gated_prompt.gated_prompt_tokens", f"{PREFIX}classifier."
Change = Callable[[Path], object]


@dataclass(frozen=True)
class Attack:
    """A change of an adapter's folder, the error and words that refuse it, and whether PEFT's own loader gives them.

    It does not where PEFT opens the config before it knows the method.
    """

    change: Change
    error: type[Exception]
    words: str
    peft_too: bool = True


def write(name: str, data: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(data)


def remove(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def settings(**changes: object) -> Change:
    """Set values in the config; KeyError as a value removes the field."""

    def change(folder: Path) -> None:
        values = {**json.loads((folder / CONFIG).read_text()), **changes}
        (folder / CONFIG).write_text(json.dumps({key: v for key, v in values.items() if v is not KeyError}))

    return change


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    """Change the tensors and remove their hash, so that the intended check finds the fault."""

    def rewrite(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        change(found)
        save_file(found, folder / WEIGHTS)
        settings(weights_sha256=None)(folder)

    return rewrite


def put(key: str, value: torch.Tensor) -> Change:
    return tensors(lambda found: found.__setitem__(key, value))


def header(change: Callable[[dict[str, Any], int], dict[str, Any] | bytes | None], grow: int = 0) -> Change:
    """Change the header, given as a dict and the bytes of all tensors; `grow` more bytes follow them, as a hole."""

    def rewrite(folder: Path) -> None:
        path = folder / WEIGHTS
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        values, body = json.loads(data[8 : 8 + length]), data[8 + length :]
        new = change(values, len(body)) or values
        text = new if isinstance(new, bytes) else json.dumps(new).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + body)
        with path.open("r+b") as file:
            file.truncate(8 + len(text) + len(body) + grow)
        settings(weights_sha256=None)(folder)

    return rewrite
