"""The page on serving shows what was measured; what the server is compared with answers each image by its task."""

from pathlib import Path

import pytest
import torch

from serving_load import plan, tables
from serving_load.contenders import FullModels, LoraAdapters, Tasks
from serving_load.measure_server import RESULTS

COMMAND = "python examples/serving_load/measure_server.py tables"


def test_the_page_shows_the_committed_results() -> None:
    assert tables.PAGE.read_text() == tables.page(tables.read(RESULTS)), f"the page is old: {COMMAND}"


@pytest.mark.parametrize("kind", [FullModels, LoraAdapters])
def test_contenders_answer_each_image_by_its_task(kind: type[Tasks], tmp_path: Path) -> None:
    folders = sorted(plan.adapters("tiny", 3, tmp_path).iterdir())
    shared = kind(str(plan.backbone_folder("tiny", tmp_path)))
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tasks = []
    for folder in (*folders, folders[0]):
        with shared.hold(folder) as task:
            tasks.append(task)
    mixed = shared.logits(pixels, tasks)
    for row, task, logits in zip(pixels, tasks, mixed, strict=True):
        torch.testing.assert_close(logits, shared.logits(row[None], [task])[0], rtol=1e-5, atol=1e-5)
    other = shared.logits(pixels[:1], tasks[1:2])[0]
    assert not torch.allclose(other, mixed[0], atol=1e-3)
    assert len(shared) == 3


def test_a_ratio_is_taken_within_a_round() -> None:
    cells = {"one 1 8": [{"mean_ms": 10.0}, {"mean_ms": 40.0}], "gated 64 8": [{"mean_ms": 11.0}, {"mean_ms": 44.0}]}
    assert tables.ratio({"cells": cells}, "gated", 8) == pytest.approx(1.1)
