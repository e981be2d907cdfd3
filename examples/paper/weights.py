# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Are these the published weights? What `gated-prompt convert` recorded, known hashes, and a look for NaN."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open

from .records import identity_of, weight_files

KNOWN = {  # beginnings of the MD5 of the published checkpoints, from the VPT repository
    "8cad7c": "MAE, mae_pretrain_vit_base.pth",
    "8f39ce": "MoCo v3, linear-vit-b-300ep.pth.tar",
}
RECORD = "conversion.json"


@dataclass
class WeightsReport:
    """`checkpoint`: the published file that these weights come from, None if unknown; `faults`: what is wrong."""

    backbone: str
    sha256: str
    checkpoint: str | None = None
    md5: str | None = None
    tensors: int = 0
    faults: list[str] = field(default_factory=list)

    def text(self) -> str:
        origin = self.checkpoint or "no published file of the paper"
        return f"Weights: {self.backbone}, SHA-256 {self.sha256}; from {origin} (MD5 {self.md5 or 'not recorded'})."


def check_weights(backbone: str) -> WeightsReport:
    """Hash the weights, compare their origin with the published files, and look for values that are not finite.

    Raises:
        GatedPromptError: the backbone has no weights.
    """
    report = WeightsReport(backbone, identity_of(backbone)["weights"])
    record = Path(backbone) / RECORD
    if record.is_file():
        content = json.loads(record.read_text())
        report.md5 = content["md5"]
        report.checkpoint = KNOWN.get(content["md5"][:6])
        if content["weights_sha256"] != report.sha256:
            report.checkpoint = None
            report.faults.append(f"{backbone}: the weights are not those that {RECORD} says were converted")
    for file in weight_files(backbone):
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  # not a dictionary
                    report.tensors += 1
                    if not torch.isfinite(tensors.get_tensor(name)).all():
                        report.faults.append(f"{file.name}: {name} contains NaN or infinite values")
    return report
