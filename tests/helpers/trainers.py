"""An adapter in transformers' Trainer."""

from pathlib import Path

import torch
from peft import PeftModel
from transformers import Trainer, TrainingArguments

from .models import images

PIXELS, LABELS = images(8), torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])
DATA = [{"pixel_values": pixels, "labels": label} for pixels, label in zip(PIXELS, LABELS, strict=True)]


def trainer(model: PeftModel, folder: Path, **arguments: object) -> Trainer:
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "max_steps": 4,
        "learning_rate": 0.05,
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
        "label_names": ["labels"],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 3,
    }
    return Trainer(
        model=model,
        args=TrainingArguments(**{**defaults, **arguments}),
        train_dataset=DATA,
        eval_dataset=DATA,
    )
