# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The options of `gated-prompt predict`."""

from dataclasses import dataclass, field


@dataclass
class Arguments:
    """What to predict with what."""

    images: list[str] = field(default_factory=list, metadata={"help": "images, and folders of images"})
    adapters: list[str] = field(default_factory=list, metadata={"help": "output folders of gated-prompt train"})
    output: str = field(default="predictions.csv", metadata={"help": "file to write, .csv or .jsonl"})
    top: int = field(default=3, metadata={"help": "classes per line"})
    batch_size: int = field(default=32, metadata={"help": "images per pass"})
    backbone: str | None = field(
        default=None, metadata={"help": "Hub id or folder of the backbone; default: the one used in training"}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "run Python code that the backbone brings"})
    export: str | None = field(
        default=None, metadata={"help": "write this ONNX file instead, and compare its outputs with the model's"}
    )
