"""Two processes give the losses of one: DDP without `find_unused_parameters`, and FSDP2."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed_worker import make, train

WORKER = Path(__file__).with_name("distributed_worker.py")
pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")


@pytest.fixture(scope="module")
def losses() -> dict[str, list[float]]:
    """Losses of every case, from one launch of two processes."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(WORKER)]
    run = subprocess.run(launch, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("kind", ["gated", "deep"])
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_losses_are_those_of_one_process(losses: dict[str, list[float]], how: str, kind: str) -> None:
    wanted = train(make(deep=kind == "deep"), rank=0, world=1)
    assert len(set(wanted)) == 3
    assert losses[f"{how} {kind}"] == pytest.approx(wanted, rel=1e-5)
