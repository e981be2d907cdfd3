"""Run by test_distributed.py in two processes on CPU: train a few steps each way and print the losses."""

import json

import torch
import torch.distributed as dist
from peft import get_peft_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from gated_prompt import GatedPromptConfig
from helpers.models import images, vit

BATCH, STEPS = 4, 3
KINDS = {"gated": {}, "deep": {"deep": True}, "zero": {"deep": True, "zero_start": True}}


def make(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    config = GatedPromptConfig(num_virtual_tokens=3, prompt_dropout=0.0, gate_init=0.0, **KINDS[kind])
    return get_peft_model(vit(), config).train()


def blocks(model: torch.nn.Module) -> list[torch.nn.Module]:
    return [module for module in model.modules() if type(module).__name__ == "ViTLayer"]


def train(model: torch.nn.Module, rank: int, world: int) -> list[float]:
    """Mean loss over the whole batch at each step; every process sees its own share of the images."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer, losses = torch.optim.SGD(parameters, lr=0.5, momentum=0.9), []
    mine = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    for step in range(STEPS):
        pixels, labels = images(BATCH, seed=step)[mine], torch.tensor([0, 1, 2, 4])[mine]
        loss = torch.nn.functional.cross_entropy(model(pixel_values=pixels).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total = loss.detach().clone()
        if world > 1:
            dist.all_reduce(total)
        losses.append(total.item() / world)
    return losses


def parallel(model: torch.nn.Module, how: str) -> torch.nn.Module:
    if how == "ddp":
        return DistributedDataParallel(model)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in blocks(model):
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    cases = [(how, kind) for how in ("ddp", "fsdp") for kind in KINDS]
    losses = {f"{how} {kind}": train(parallel(make(kind), how), rank, world) for how, kind in cases}
    if rank == 0:
        print(json.dumps(losses))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
