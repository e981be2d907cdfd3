"""The cosine under gradient accumulation: it ends with the last step of the optimizer, wherever epochs end."""

from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset
from transformers import get_cosine_schedule_with_warmup

from gated_prompt.training.loop import (
    LoopConfig,
    TrainerCallback,
    make_accelerator,
    new_training,
    optimizer_steps,
    train,
    training_loader,
)

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


class Rates(TrainerCallback):
    """The rate after each step of the optimizer."""

    def __init__(self, schedule: torch.optim.lr_scheduler.LRScheduler) -> None:
        self.schedule, self.found = schedule, [schedule.get_last_lr()[0]]

    def after_step(self) -> None:
        self.found.append(self.schedule.get_last_lr()[0])


@pytest.mark.parametrize(("batches", "accumulation", "steps"), [(20, 4, 6), (20, 1, 20), (14, 4, 4), (20, 10, 2)])
def test_the_rate_falls_until_the_last_step(batches: int, accumulation: int, steps: int, tmp_path: Path) -> None:
    """Ten batches an epoch: four, four and two make a step each. Two trainings share an accelerator."""
    accelerator = make_accelerator(0, None, tmp_path, accumulation=accumulation)
    assert optimizer_steps(batches, 10, accumulation) == steps
    for _ in range(2):
        new_training(accelerator, 0, tmp_path)
        model = torch.nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        schedule = get_cosine_schedule_with_warmup(optimizer, 1, steps)
        loader = training_loader(TensorDataset(torch.randn(10, 2), torch.randn(10, 1)), 1, 0)
        wrapped, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        watch = Rates(schedule)
        train(
            accelerator,
            wrapped,
            loader,
            optimizer,
            schedule,
            lambda x, y, model=wrapped: torch.nn.functional.mse_loss(model(x), y),
            LoopConfig(batches, "step", tmp_path, None, None),
            watch=watch,
        )
        assert len(watch.found) == steps + 1 and watch.found[-1] == pytest.approx(0, abs=1e-9)
        assert watch.found[1:] == sorted(watch.found[1:], reverse=True)
