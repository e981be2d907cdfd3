"""Two processes that see different images start from the same prompts, made from all images."""

import json
from pathlib import Path

import pytest
import torch

from helpers.init_worker import CASES, SHARES, start
from helpers.models import vit
from helpers.two_processes import run

WORKER = Path(__file__).parents[1] / "helpers" / "init_worker.py"
pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the two processes wrote, from one launch."""
    place = tmp_path_factory.mktemp("processes")
    run(WORKER, str(place))
    return place


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, torch.Tensor]]:
    return [torch.load(folder / f"prompts{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("name", [*CASES, "empty", "empty match"])
def test_both_have_the_same_prompts(found: list[dict[str, torch.Tensor]], name: str) -> None:
    assert torch.equal(found[0][name], found[1][name])
    assert found[0][name].isfinite().all()


@torch.no_grad()
def owners(rows: torch.Tensor) -> list[int]:
    """Which process saw each of these tokens of block 0."""
    tokens = [torch.cat([vit()(b, output_hidden_states=True).hidden_states[0] for b in share]) for share in SHARES]
    distances = [torch.cdist(rows.double(), t[:, 1:].flatten(0, 1).double()).min(1).values for t in tokens]
    nearest = torch.stack(distances).min(0)
    assert nearest.values.max() < 1e-4
    return nearest.indices.tolist()


def test_tokens_come_from_both(found: list[dict[str, torch.Tensor]]) -> None:
    assert set(owners(found[0]["sample"][0])) == {0, 1}
    assert set(owners(found[0]["empty"][0])) == {1}


def test_means_of_two_are_those_of_one_that_sees_everything(found: list[dict[str, torch.Tensor]]) -> None:
    """ "match" draws nothing by process, so that its prompts do not depend on their number."""
    wanted = start(CASES["match"], [*SHARES[0], *SHARES[1]])
    torch.testing.assert_close(found[0]["match"], wanted, atol=1e-3, rtol=0)  # sums in another order


def test_an_error_on_one_is_raised_on_both(folder: Path) -> None:
    zero, one = (json.loads((folder / f"errors{rank}.json").read_text()) for rank in (0, 1))
    assert zero["nan on 1"].startswith("process 1: the tokens at block 0 hold NaN")
    assert one["nan on 1"].startswith("the tokens at block 0 hold NaN")
    assert zero["too few"] == one["too few"] and "gave 0 tokens" in one["too few"]
