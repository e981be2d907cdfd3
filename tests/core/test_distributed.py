"""Two processes give the losses of one: DDP without `find_unused_parameters`, and FSDP2."""

import json
from pathlib import Path

import pytest
import torch

from helpers.distributed_worker import KINDS, make, train
from helpers.two_processes import run

WORKER = Path(__file__).parents[1] / "helpers" / "distributed_worker.py"
pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")


@pytest.fixture(scope="module")
def losses() -> dict[str, list[float]]:
    """Losses of every case, from one launch of two processes."""
    return json.loads(run(WORKER).strip().splitlines()[-1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_losses_are_those_of_one_process(losses: dict[str, list[float]], how: str, kind: str) -> None:
    wanted = train(make(kind), rank=0, world=1)
    assert len(set(wanted)) == 3
    assert losses[f"{how} {kind}"] == pytest.approx(wanted, rel=1e-5)
