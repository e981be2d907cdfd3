# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Adapt a frozen Vision Transformer to a small image classification task, by the recipe of the paper.

    accelerate launch examples/train_vtab.py                          # the shipped backbone on scanned digits
    accelerate launch examples/train_vtab.py --backbone facebook/dinov2-base --num_virtual_tokens 10

The same command runs on one CPU, one GPU, several GPUs (`accelerate config`) and in mixed precision
(`accelerate launch --mixed_precision bf16`). It trains on the 800 + 200 images, scores the test part once, and
leaves in `--output_dir`: `adapter/` (weights, config, model card), `results.json` and `gates.png`.

Recipe (paper, Appendix A; official code): SGD with momentum 0.9, no weight decay, one learning rate for prompts,
gates, temperatures and head; 100 epochs, 10 of them linear warm-up from 0, then a cosine to 0, stepped once an
epoch; prompt dropout 0.1; the inside of the frozen blocks in eval mode; images resized straight to the model's
size, no augmentation.
"""

import sys
import time
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator, DataLoaderConfiguration, skip_first_batches
from accelerate.utils import set_seed
from checkpoints import find_checkpoint, keep_only_trainable, prepare_output_dir, save_checkpoint
from methods import METHODS, SHIPPED_BACKBONE, PromptArguments, build_model
from probe import patch_features, probe
from reporting import environment, push, read_out, write_results
from tasks import KNOWN, load_task, transform_for
from torch.utils.data import DataLoader, Subset
from torchmetrics.classification import MulticlassAccuracy
from tqdm import tqdm
from transformers import AutoModel, HfArgumentParser, get_cosine_schedule_with_warmup

from gated_prompt import GatedPromptError
from gated_prompt.data.preprocess import CachedImages, TransformedImages


@dataclass
class Arguments:
    """What to train on what; the settings of the prompts are those of `GatedPromptConfig`."""

    task: str = field(default="digits", metadata={"help": f"one of: {', '.join(KNOWN)}"})
    data_dir: str | None = field(default=None, metadata={"help": "folder in the vtab-1k layout; without it: the Hub"})
    backbone: str = field(default=str(SHIPPED_BACKBONE), metadata={"help": "Hub id or folder of a ViT"})
    method: str = field(default="gated", metadata={"help": f"one of: {', '.join(METHODS)}"})
    output_dir: str = field(default="runs/vtab", metadata={"help": "where everything is written"})
    seed: int = field(default=42, metadata={"help": "of head, prompts, order and dropout"})
    num_train_epochs: int = field(default=100, metadata={"help": "passes over the 1000 training images"})
    warmup_epochs: int = field(default=10, metadata={"help": "epochs of linear warm-up; the first runs at rate 0"})
    per_device_train_batch_size: int = field(default=128, metadata={"help": "images a process and step"})
    per_device_eval_batch_size: int = field(default=256, metadata={"help": "images a process and step"})
    learning_rate: float = field(default=0.03, metadata={"help": "peak rate of SGD; the paper tries 0.05 to 5"})
    momentum: float = field(default=0.9, metadata={"help": "of SGD"})
    weight_decay: float = field(default=0.0, metadata={"help": "of SGD, on everything that is trained"})
    max_train_samples: int | None = field(default=None, metadata={"help": "use fewer training images, to try things"})
    checkpointing_steps: str = field(default="epoch", metadata={"help": "'epoch', or a number of steps"})
    resume_from_checkpoint: str | None = field(default=None, metadata={"help": "a checkpoint folder, or 'latest'"})
    report_to: str | None = field(default=None, metadata={"help": "tracker: tensorboard, wandb, trackio, ..."})
    push_to_hub: bool = field(default=False, metadata={"help": "upload the adapter and its card when done"})
    hub_model_id: str | None = field(default=None, metadata={"help": "repository to push to, user/name"})


def evaluate(model: torch.nn.Module, loader: DataLoader[Any], num_classes: int, accelerator: Accelerator) -> float:
    """Top-1 accuracy in [0, 1]."""
    metric = MulticlassAccuracy(num_classes, average="micro").to(accelerator.device)
    model.eval()
    with torch.inference_mode():
        for pixels, labels in tqdm(loader, desc="evaluate", disable=not accelerator.is_main_process, leave=False):
            metric.update(*accelerator.gather_for_metrics((model(pixels).logits, labels)))
    return float(metric.compute())


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run with these arguments (None: those of the command line) and return the content of results.json."""
    args, prompts = HfArgumentParser((Arguments, PromptArguments)).parse_args_into_dataclasses(argv)
    output = prepare_output_dir(args.output_dir)
    task = load_task(args.task, args.data_dir)
    accelerator = Accelerator(
        log_with=args.report_to,
        project_dir=str(output),
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=args.seed),
    )
    set_seed(args.seed)

    # Model and data. The paper's final run trains on the 800 + 200 images together, without augmentation.
    model = build_model(args.backbone, args.method, prompts, task.class_names)
    trained = [p for p in model.parameters() if p.requires_grad]
    before = read_out(model)
    accelerator.print(f"{args.method}: {sum(p.numel() for p in trained)} trained parameters")
    transform = transform_for(args.backbone)
    cached = CachedImages(task.train, transform)
    train_data = Subset(cached, range(min(len(cached), args.max_train_samples or len(cached))))
    test_data = TransformedImages(task.test, transform)
    # A generator of its own: starting an epoch must not draw from the one that the dropout uses (exact resuming).
    loader = DataLoader(train_data, args.per_device_train_batch_size, shuffle=True, generator=torch.Generator())
    test_loader = DataLoader(test_data, args.per_device_eval_batch_size)

    # Optimizer and schedule. The schedule is stepped once an epoch, by hand: prepared, it would be stepped once for
    # each process.
    optimizer = torch.optim.SGD(trained, args.learning_rate, args.momentum, weight_decay=args.weight_decay)
    schedule = get_cosine_schedule_with_warmup(optimizer, args.warmup_epochs, args.num_train_epochs)
    model, optimizer, loader, test_loader = accelerator.prepare(model, optimizer, loader, test_loader)
    accelerator.register_for_checkpointing(schedule)
    keep_only_trainable(accelerator)
    if args.report_to:
        accelerator.init_trackers("gated_prompt", config={**vars(args), **vars(prompts)})

    step = 0
    if args.resume_from_checkpoint:
        checkpoint = find_checkpoint(args.resume_from_checkpoint, output / "checkpoints")
        accelerator.load_state(str(checkpoint))
        step = int(checkpoint.name.removeprefix("step_"))
        accelerator.print(f"resumed after step {step}")

    start, first_step = time.perf_counter(), step
    bar = tqdm(
        total=args.num_train_epochs * len(loader), initial=step, desc="train", disable=not accelerator.is_main_process
    )
    for epoch in range(step // len(loader), args.num_train_epochs):
        model.train()
        loader.set_epoch(epoch)
        done = step - epoch * len(loader)
        for pixels, labels in skip_first_batches(loader, done) if done else loader:
            loss = F.cross_entropy(model(pixels).logits, labels)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            bar.update()
            epoch_ends = step % len(loader) == 0
            if epoch_ends:
                bar.set_postfix(loss=f"{loss.item():.3f}", lr=f"{schedule.get_last_lr()[0]:.3g}")
                accelerator.log({"loss": loss.item(), "learning_rate": schedule.get_last_lr()[0]}, step=step)
                schedule.step()
            if epoch_ends if args.checkpointing_steps == "epoch" else step % int(args.checkpointing_steps) == 0:
                save_checkpoint(accelerator, output / "checkpoints", f"step_{step:08d}")
    bar.close()
    seconds = time.perf_counter() - start

    accuracy = evaluate(model, test_loader, len(task.class_names), accelerator)
    results: dict[str, Any] = {}
    if accelerator.is_main_process:
        backbone = AutoModel.from_pretrained(args.backbone, dtype="float32").eval().to(accelerator.device)
        probe_accuracy = probe(patch_features(backbone, train_data), patch_features(backbone, test_data))
        results = {
            "task": task.name,
            "data": [task.train.provenance.to_dict(), task.test.provenance.to_dict()],
            "class_names": task.class_names,
            "method": args.method,
            "test_accuracy": accuracy,
            "linear_probe_accuracy": probe_accuracy,
            "num_train": len(train_data),
            "num_test": len(test_data),
            "trained_parameters": sum(p.numel() for p in trained),
            "train_seconds": round(seconds, 1),
            "steps": step - first_step,
            "settings": {**vars(args), **vars(prompts)},
            **environment(),
        }
        notes = f"""## Training

{len(train_data)} training and {len(test_data)} test images from {task.train.provenance.source}. A linear probe of the
same frozen backbone on the same images has a test accuracy of {probe_accuracy:.4f}."""
        write_results(output, accelerator.unwrap_model(model), before, results, {"accuracy": accuracy}, notes)
        if args.push_to_hub:
            push(output, accelerator.unwrap_model(model), args.hub_model_id or output.name)
        print(f"test accuracy of {args.method}: {accuracy:.4f}; of a linear probe: {probe_accuracy:.4f}")
        print(f"trained for {seconds:.0f} s; adapter, results.json and gates.png are in {output}")
    accelerator.end_training()
    return results


if __name__ == "__main__":
    try:
        main()
    except GatedPromptError as error:
        sys.exit(f"error: {error}")
