# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What the pre-training scripts share: images in memory, their augmentation, and epochs with a log and checkpoints."""

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from datasets import load_dataset
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from gated_prompt.images import to_rgb
from gated_prompt.training.checkpoints import resume, save_checkpoint
from gated_prompt.transforms import IMAGENET_MEAN, IMAGENET_STD


def load_images(dataset: str, image_size: int) -> torch.Tensor:
    """Load all training images as one uint8 tensor of shape (N, 3, image_size, image_size)."""
    split = load_dataset(dataset, split="train")
    column = "image" if "image" in split.column_names else "img"
    images = torch.empty(len(split), 3, image_size, image_size, dtype=torch.uint8)
    for i, image in enumerate(tqdm(split[column], desc="decode", leave=False)):
        pixels = np.array(to_rgb(image).resize((image_size, image_size)))
        images[i] = torch.from_numpy(pixels).permute(2, 0, 1)
    return images


def augment(images: torch.Tensor, min_crop: float) -> torch.Tensor:
    """Crop, resize and flip a uint8 batch (B, 3, H, W) at random, then normalise it (ImageNet) to float."""
    n = len(images)
    side = torch.empty(n).uniform_(min_crop, 1).sqrt()
    flip = torch.randint(0, 2, (n,)) * 2.0 - 1.0
    shift_x, shift_y = (torch.empty(2, n).uniform_(-1, 1)) * (1 - side)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = side * flip, shift_x
    theta[:, 1, 1], theta[:, 1, 2] = side, shift_y
    grid = F.affine_grid(theta.to(images.device), list(images.shape), align_corners=False)
    pixels = F.grid_sample(images.float() / 255, grid, padding_mode="reflection", align_corners=False)
    mean, std = (torch.tensor(v, device=pixels.device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels - mean) / std


def train_epochs(
    accelerator: Accelerator,
    model: nn.Module,
    loader: DataLoader[Any],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    loss_of: Callable[[Sequence[torch.Tensor]], torch.Tensor],
    output: Path,
    num_epochs: int,
    max_norm: float | None = None,
) -> Path:
    """Train up to epoch `num_epochs`, resuming from the newest checkpoint in `output` if there is one.

    `accelerator` must have prepared everything but `schedule`, which is stepped once per optimizer step and so counts
    this process's steps. `loss_of` returns the loss of a batch. `max_norm` clips the gradient norm.

    Returns:
        The path of the log: one JSON line per epoch with its mean loss and seconds.
    """
    accelerator.register_for_checkpointing(schedule)
    checkpoints, log = output / "checkpoints", output / "log.jsonl"
    made_with = {"batches per epoch": len(loader)}
    first = resume(accelerator, "latest", checkpoints, made_with) // len(loader)
    if accelerator.is_main_process:  # drop rows of epochs without a checkpoint, or of an older run
        rows = log.read_text().splitlines(keepends=True)[:first] if log.exists() else []
        log.write_text("".join(rows))

    model.train()
    for epoch in range(first, num_epochs):
        loader.set_epoch(epoch)  # type: ignore[attr-defined]
        start, total = time.perf_counter(), torch.zeros((), device=accelerator.device)
        bar = tqdm(loader, desc=f"epoch {epoch + 1}", disable=not accelerator.is_main_process, leave=False)
        for batch in bar:
            loss = loss_of(batch)
            accelerator.backward(loss)
            if max_norm is not None:
                accelerator.clip_grad_norm_(model.parameters(), max_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total += loss.detach()
        mean = accelerator.gather(total / len(loader)).mean().item()
        if not math.isfinite(mean):
            raise SystemExit(f"the loss of epoch {epoch + 1} is {mean}. Lower --learning_rate and start again.")
        if accelerator.is_main_process:
            seconds = round(time.perf_counter() - start, 1)
            with log.open("a") as file:
                file.write(json.dumps({"epoch": epoch + 1, "loss": round(mean, 5), "seconds": seconds}) + "\n")
            tqdm.write(f"epoch {epoch + 1}/{num_epochs}  loss {mean:.4f}  {seconds} s")
        save_checkpoint(accelerator, checkpoints, f"step_{(epoch + 1) * len(loader):08d}", made_with)
    return log


def plot_loss(log: Path, target: Path, title: str = "MAE pre-training", loss: str = "masked-pixel loss") -> None:
    """Plot the loss in `log.jsonl`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [json.loads(line) for line in log.read_text().splitlines()]
    figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
    axes.plot([r["epoch"] for r in rows], [r["loss"] for r in rows])
    axes.set(xlabel="epoch", ylabel=loss, title=title)
    figure.savefig(target, dpi=100)
    plt.close(figure)
