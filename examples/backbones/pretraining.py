# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Training loop of the pre-training scripts: epochs with a log, and checkpoints to resume from."""

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from gated_prompt.training.checkpoints import resume, save_checkpoint


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
    this process's steps. `loss_of` returns the loss of a batch; `max_norm` clips the gradient norm.

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
            raise SystemExit(f"the loss of epoch {epoch + 1} is {mean}; lower --learning_rate and start again")
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
