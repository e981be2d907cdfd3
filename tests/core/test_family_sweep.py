# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The sweep over model families: docs/families.md shows its committed results, and a sample gives them again."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from family_sweep import checks, tiny
from family_sweep.page import PAGE, RESULTS, new_page
from family_sweep.sweep import record

RECORDS = json.loads(RESULTS.read_text())
SAMPLE = ["ASTModel", "Dinov2WithRegistersModel", "Siglip2VisionModel", "SwinModel", "VideoMAEModel"]


def test_the_page_shows_the_results() -> None:
    wanted = new_page(PAGE.read_text(), RECORDS)
    assert PAGE.read_text() == wanted, "docs/families.md is old. Regenerate it: python tools/sweep_families.py --page"


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_gives_the_committed_record(name: str) -> None:
    if transformers.__version__ != RECORDS["versions"]["transformers"]:
        pytest.skip("the results are those of another version of transformers")
    assert record(name) == RECORDS["records"][name]


def test_no_class_is_accepted_while_a_check_fails() -> None:
    faulty = {name: entry["faults"] for name, entry in RECORDS["records"].items() if entry["status"] == "faulty"}
    assert faulty == {}


class Broken(nn.Module):
    """A model whose answer depends on the other images of the batch, on nothing, or on positions."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.model, self.fault = tiny.build("ViTModel"), fault

    def forward(self, pixel_values: torch.Tensor) -> Any:
        tokens = self.model(pixel_values).last_hidden_state
        return {"batch": tokens.mean(0, keepdim=True) + tokens, "deaf": 0 * tokens, "none": tokens}[self.fault]


@pytest.mark.parametrize(
    ("fault", "wanted"),
    [("none", set()), ("batch", set()), ("deaf", {"no effect", "no gradient for prompts", "no gradient for gates",
                                               "no gradient for temperatures"})],
)  # fmt: skip
def test_the_checks_see_what_they_are_for(fault: str, wanted: set[str]) -> None:
    """A base that mixes its images is no fault of the prompts."""
    pixels = torch.randn(2, 3, tiny.SIZE, tiny.SIZE, generator=torch.Generator().manual_seed(1))
    found = checks.faults(lambda: Broken(fault).eval(), lambda model, images: model(pixels[images]), 4)
    assert set(found) == wanted
