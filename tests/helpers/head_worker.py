"""Run by test_initialize_head.py in two processes: fit heads to two shares of the images."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from peft import get_peft_model
from torch.nn.parallel import DistributedDataParallel

from gated_prompt import GatedPromptConfig, GatedPromptError, initialize_head
from helpers.models import images, vit

CLASSES = torch.arange(40) % 5
SHARES = (
    [(images(9, seed=2), CLASSES[:9]), (images(11, seed=3), CLASSES[9:20])],
    [(images(20, seed=4), CLASSES[20:])],
)


def start(batches: object) -> torch.Tensor:
    """Weight and bias (5, 33) of the head of a fresh adapter, wrapped as training would wrap it."""
    torch.manual_seed(0)
    model = get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=5))
    initialize_head(DistributedDataParallel(model) if dist.is_initialized() else model, batches)
    head = model.base_model.model.classifier.modules_to_save["default"]
    return torch.cat((head.weight, head.bias[:, None]), 1).detach()


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    found = {"shares": start(SHARES[rank]), "empty": start([b for s in SHARES for b in s] if rank else [])}
    torch.save(found, folder / f"heads{rank}.pt")
    try:
        start([(images(2), torch.tensor([0, 7]))] if rank else SHARES[0])
        message = "no error"
    except GatedPromptError as error:
        message = str(error)
    (folder / f"error{rank}.json").write_text(json.dumps(message))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
