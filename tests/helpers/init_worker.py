"""Run by test_initialize_distributed.py in two processes: start prompts from two shares of the images."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from peft import get_peft_model
from torch.nn.parallel import DistributedDataParallel

from gated_prompt import GatedPromptConfig, GatedPromptError, initialize_prompts
from helpers.models import bank_of, images, vit

CASES = {
    "sample": {},
    "mean": {"method": "mean"},
    "kmeans": {"method": "kmeans"},
    "match": {"method": "match", "neighbours": 3, "orthogonal": 0.2},
}
SHARES = ([images(4), images(2, seed=2)], [images(3, seed=3)])


def start(settings: dict, batches: object, count: int = 5) -> torch.Tensor:
    """Prompts (S, P, D) of a fresh adapter, wrapped as training would wrap it where there are processes."""
    torch.manual_seed(0)
    model = get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=count, deep=True))
    wrapped = DistributedDataParallel(model) if dist.is_initialized() else model
    initialize_prompts(wrapped, batches, seed=7, **settings)
    return bank_of(model).gated_prompt_tokens["default"].detach()


def message(batches: object, count: int = 5) -> str:
    try:
        start({}, batches, count)
    except GatedPromptError as error:
        return str(error)
    return "no error"


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    mine = SHARES[rank]
    found = {name: start(settings, mine) for name, settings in CASES.items()}
    found["empty"] = start({}, mine if rank == 1 else [])
    found["empty match"] = start(CASES["match"], mine if rank == 1 else [])
    torch.save(found, folder / f"prompts{rank}.pt")
    bad = torch.full((1, 3, 32, 32), float("nan"))
    errors = {"nan on 1": message([bad] if rank == 1 else mine), "too few": message([], count=2)}
    (folder / f"errors{rank}.json").write_text(json.dumps(errors))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
