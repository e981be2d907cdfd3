"""safetensors headers with wrong offsets, sizes or types, or that are not JSON.

Most of these kinds are those of safetensors' own attacks; the library refuses some and leaves others to its users.
"""

import json
import struct
from typing import Any

from gated_prompt import DamagedAdapterError

from .attack import TOKENS, WEIGHTS, Attack, Change, header, write


def entry(**changes: Any) -> Change:
    """Another description of the prompts."""
    return header(lambda values, _: {**values, TOKENS: {**values[TOKENS], **changes}})


def more(key: str, dtype: str, shape: list[int], start: int, end: int) -> Change:
    """Another tensor at this offset after the others; the file does not grow."""
    return header(
        lambda values, size: {
            **values,
            key: {"dtype": dtype, "shape": shape, "data_offsets": [size + start, size + end]},
        }
    )


def raw(length: int, text: bytes) -> Change:
    return write(WEIGHTS, struct.pack("<Q", length) + text)


def repeated(values: dict[str, Any], _: int) -> bytes:
    text = json.dumps(values)
    return (f'{{"{TOKENS}": {json.dumps(values[TOKENS])}, ' + text[1:]).encode()


CHANGES = {
    "no-json": header(lambda values, _: b"{" * 40),
    "list": header(lambda values, _: b"[]" + b" " * 30),
    "number": header(lambda values, _: b"1" * 5000),
    "nested": header(lambda values, _: b'{"a":' * 100_000),
    "not-utf-8": header(lambda values, _: json.dumps(values).encode().replace(b"gate_logits", b"gate_logit\xff")),
    "repeated-key": header(repeated),
    "text-for-entry": header(lambda values, _: {**values, TOKENS: "tensor"}),
    "no-dtype": header(lambda values, _: {**values, TOKENS: {"shape": [1, 3, 32], "data_offsets": [0, 384]}}),
    "unknown-dtype": entry(dtype="F31"),
    "list-for-dtype": entry(dtype=["F32"]),
    "negative-shape": entry(shape=[1, -3, -32]),
    "fraction": entry(shape=[1, 3.0, 32]),
    "true": entry(shape=[True, 3, 32]),
    "huge-shape": entry(shape=[2**62, 2**62, 2**62]),
    "many-axes": entry(shape=[1] * 10_000 + [3, 32]),
    "no-offsets": header(lambda values, _: {**values, TOKENS: {"dtype": "F32", "shape": [1, 3, 32]}}),
    "backwards": entry(data_offsets=[384, 0]),
    "overlap": entry(data_offsets=[4, 388]),
    "beyond-the-end": more("base_model.model.classifier.more", "F32", [100], 0, 400),
    "empty-beyond": more("base_model.model.classifier.more", "F32", [0], 400, 400),
    "gap": header(lambda values, _: None, grow=64),
    "metadata-of-numbers": header(lambda values, _: {**values, "__metadata__": {"format": 1}}),
    "header-longer-than-file": raw(1000, b"{}"),
    "header-of-exabytes": raw(2**63, b"{}"),
    "header-of-2-GiB": raw(2**31, b"{}"),
    "no-header": raw(0, b""),
}
ATTACKS = {
    name: Attack(change, DamagedAdapterError, f"{WEIGHTS} is not a readable safetensors file")
    for name, change in CHANGES.items()
}
