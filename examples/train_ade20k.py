# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
r"""Adapt a frozen Vision Transformer to semantic segmentation: prompts in the backbone, a SETR-PUP head on top.

    accelerate launch examples/train_ade20k.py --data_dir ADEChallengeData2016 --backbone facebook/dinov2-base \
        --num_virtual_tokens 100 --gate_init -10

The same command runs on one CPU, one GPU, several GPUs (`accelerate config`) and in mixed precision. It writes to
`--output_dir`: `adapter/` (weights of prompts and heads, config, model card), `results.json`, `gates.png` and
`predictions.png`.

Recipe (paper, Section 5.1 and Appendix A; where they are silent, mmsegmentation's defaults for SETR-PUP): 512 x 512
crops of images scaled to a short side of 512 times 0.5 to 2, half of them flipped; 160,000 steps of 16 images. SGD
with momentum 0.9, no weight decay, learning rate 0.001 for prompts, gates and temperatures and ten times that for the
heads, decayed to 0.0001 as (1 - t/T) ** 0.9 at every step. Auxiliary heads after blocks 5 and 9 with loss weight 0.4.
Evaluation: sliding windows of 512 pixels with stride 341, at scale 1, and at scales 0.5 to 1.75 with mirror images.
docs/appendix/paper_tables.md states what is exact and what is not.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedDataParallelKwargs
from peft import get_peft_model

from gated_prompt import GatedPromptError
from gated_prompt.command_line import CommandLine, mistakes_in_one_line
from gated_prompt.data.ade20k import IGNORE
from gated_prompt.finetune.methods import prompt_config
from gated_prompt.finetune.recipe import PROMPT_METHODS
from gated_prompt.finetune.report import environment, push, read_out, write_results
from gated_prompt.finetune.segmentation.scores import majority_score, score
from gated_prompt.finetune.shared_arguments import PromptArguments, option
from gated_prompt.segmentation.sliding_window import MULTI_SCALE, predict
from gated_prompt.sharing.backbone import image_settings, quiet_loading
from gated_prompt.shipped import BACKBONE_HELP, SHIPPED_BACKBONE
from gated_prompt.training import loop
from gated_prompt.training.checkpoints import check_interval, prepare_output_dir
from gated_prompt.training.optim import optimizer_groups
from paper.records import failure_is_noted
from paper.segmentation.data import KNOWN, TrainingCrops, WholeImages, load_task
from paper.segmentation.evaluation import confusion_matrix, draw_predictions
from paper.segmentation.setr import SetrPupForSemanticSegmentation, poly_schedule, setr_loss

POSITIVE = ["short_side", "crop_size", "stride", "max_train_steps", "head_channels"]
POSITIVE += ["per_device_train_batch_size", "per_device_eval_batch_size"]


@dataclass
class Arguments:
    """What to train on what. The settings of the prompts are those of `GatedPromptConfig`."""

    task: str = option(f"{', '.join(KNOWN)}, or a name for your own data", "ade20k")
    data_dir: str | None = option("folder in ADE20K's layout (default: the Hub)", None)
    num_classes: int | None = option("for your own data: number of classes, which it needs", None)
    reduce_labels: bool = option("for your own data: 0 is ignored, 1 is the first class", False)
    ignore_label: int = option("for your own data: value of ignored pixels", IGNORE)
    backbone: str = option(BACKBONE_HELP, str(SHIPPED_BACKBONE))
    method: str = option("what is trained, with linear the heads alone", "gated", (*PROMPT_METHODS, "linear", "full"))
    output_dir: str = option("folder for all results", "runs/ade20k")
    seed: int = option("random seed for heads, prompts, order, crops and dropout", 42)
    auxiliary_blocks: list[int] = field(
        default_factory=lambda: [5, 9], metadata={"help": "blocks followed by an auxiliary head, counted from 1"}
    )
    head_channels: int = option("channels of the heads", 256)
    short_side: int | None = option("pixels at scale 1 (default: --crop_size)", None)
    crop_size: int = option("side of crops and test windows in pixels", 512)
    stride: int | None = option("stride of test windows (default: 2/3 of --crop_size)", None)
    multi_scale: bool = option("also evaluate at six scales with mirror images", True)
    max_train_steps: int = option("optimizer steps", 160_000)
    per_device_train_batch_size: int = option("crops per process and step (16 in the paper)", 16)
    per_device_eval_batch_size: int = option("test windows at once, which does not affect scores", 16)
    learning_rate: float = option("initial learning rate of SGD", 0.001)
    min_learning_rate: float = option("final learning rate, heads included", 0.0001)
    head_learning_rate_factor: float = option("initial learning rate of the heads / of the rest", 10.0)
    momentum: float = option("momentum of SGD", 0.9)
    weight_decay: float = option("weight decay of SGD, on all trained parameters", 0.0)
    dataloader_num_workers: int = option("processes that load images, which does not affect results", 4)
    max_train_samples: int | None = option("train on at most this many images, for quick trials (default: all)", None)
    checkpointing_steps: str = option("'epoch', or a number of steps", "epoch")
    resume_from_checkpoint: str | None = option("checkpoint folder, or 'latest' (default: start anew)", None)
    report_to: str | None = option("tracker: tensorboard, wandb, trackio, ... (default: none)", None)
    push_to_hub: bool = option("upload the adapter folder when done", False)
    hub_model_id: str | None = option("repository to push to, user/name (default: the name of --output_dir)", None)


def fill_in(args: Arguments) -> None:
    """Set the arguments that depend on others, and check all of them.

    Raises:
        GatedPromptError: a number is out of range, or `--checkpointing_steps` is not an interval.
    """
    check_interval(args.checkpointing_steps)
    args.short_side = args.short_side or args.crop_size
    args.stride = args.stride or max(1, args.crop_size * 2 // 3)
    for name in POSITIVE:
        if getattr(args, name) < 1:
            raise GatedPromptError(f"--{name} is {getattr(args, name)}. Give 1 or more.")
    if args.stride > args.crop_size:
        raise GatedPromptError(f"--stride {args.stride} would leave gaps between windows of {args.crop_size} pixels")
    first_rates = args.learning_rate, args.learning_rate * args.head_learning_rate_factor
    if not (min(first_rates) > 0 and 0 <= args.min_learning_rate <= min(first_rates)):
        raise GatedPromptError(
            f"--min_learning_rate is {args.min_learning_rate} and the initial rates are {first_rates[0]} and, for the "
            f"heads, {first_rates[1]}. Give initial rates above 0, and a minimum from 0 to the smaller of them."
        )


def build_model(args: Arguments, prompts: Any, num_classes: int) -> torch.nn.Module:
    """Build SETR-PUP on the frozen backbone with prompts, or for the baselines `linear` and `full`.

    Raises:
        GatedPromptError: the method is unknown, or a setting is invalid.
    """
    if prompts.pooling not in ("auto", "none"):
        raise GatedPromptError(f"--pooling {prompts.pooling} has no effect: the heads read patch tokens, not token 0")
    config = prompt_config(args.method, prompts, mae_backbone=False)
    model = SetrPupForSemanticSegmentation(args.backbone, num_classes, args.auxiliary_blocks, args.head_channels)
    if config is not None:
        return get_peft_model(model, config)
    model.backbone.requires_grad_(args.method == "full")
    return model


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run with these arguments (None: the command line's) and return the content of results.json."""
    args, prompts = CommandLine((Arguments, PromptArguments), __doc__).parse(argv)
    quiet_loading()
    fill_in(args)
    output = prepare_output_dir(args.output_dir)
    task = load_task(args.task, args.data_dir, args.num_classes, args.reduce_labels, args.ignore_label)
    num_classes = len(task.class_names)
    # Full fine-tuning: backbones have parameters that segmentation does not use, such as mask tokens.
    unused = DistributedDataParallelKwargs(find_unused_parameters=args.method == "full")
    accelerator = loop.make_accelerator(args.seed, args.report_to, output, unused)

    # Model and data.
    model = build_model(args, prompts, num_classes)
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    num_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    before = read_out(model)
    accelerator.print(f"{args.method}: {num_trained} trained parameters")
    wanted = image_settings(args.backbone)
    mean, std = wanted.mean, wanted.std
    count = min(len(task.train), args.max_train_samples or len(task.train))
    if count < args.per_device_train_batch_size * accelerator.num_processes:
        raise GatedPromptError(f"{count} training images do not fill one batch. Lower --per_device_train_batch_size.")
    crops = TrainingCrops(task.train, count, args.short_side, args.crop_size, mean, std, args.seed)
    test_data = WholeImages(task.test, mean, std)
    workers = args.dataloader_num_workers
    loader = loop.training_loader(crops, args.per_device_train_batch_size, workers, drop_last=True)

    heads = {"head": {"lr": args.learning_rate * args.head_learning_rate_factor}}
    groups = optimizer_groups(model, args.learning_rate, args.weight_decay, heads)
    optimizer = torch.optim.SGD(groups, args.learning_rate, args.momentum)
    schedule = poly_schedule(optimizer, args.max_train_steps, args.min_learning_rate)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    if args.report_to:
        accelerator.init_trackers("gated_prompt", config={**vars(args), **vars(prompts)})
    done = loop.train(
        accelerator,
        model,
        loader,
        optimizer,
        schedule,
        lambda pixels, labels: setr_loss(model(pixels), labels, IGNORE),
        loop.plan_of(args, output, args.max_train_steps, "step"),
        crops.set_epoch,
    )

    single_scale = partial(
        predict,
        short_side=args.short_side,
        window=args.crop_size,
        stride=args.stride,
        batch_size=args.per_device_eval_batch_size,
    )
    multi_scale = partial(single_scale, scales=MULTI_SCALE, flip=True)
    confusion = confusion_matrix(model, test_data, single_scale, num_classes, accelerator)
    single, majority, multi = score(confusion), majority_score(confusion), None
    if args.multi_scale:
        multi = score(confusion_matrix(model, test_data, multi_scale, num_classes, accelerator))
    results: dict[str, Any] = {}
    if accelerator.is_main_process:
        results = {
            "task": task.name,
            "data": [task.train.provenance.to_dict(), task.test.provenance.to_dict()],
            "class_names": task.class_names,
            "method": args.method,
            "single_scale": single.to_dict(),
            "multi_scale": multi.to_dict() if multi else None,
            "majority_class": majority.to_dict(),
            "num_train": len(crops),
            "num_test": len(test_data),
            "trained_parameters": num_trained,
            "train_seconds": round(done.seconds, 1),
            "steps": done.steps,
            "settings": {**vars(args), **vars(prompts)},
            **environment(),
        }
        numbers = {
            "mean_iou": single.mean_iou,
            "mean_accuracy": single.mean_accuracy,
            "accuracy": single.pixel_accuracy,
        }
        trained = accelerator.unwrap_model(model).eval()
        draw_predictions(output / "predictions.png", trained, task, test_data, single_scale)
        write_results(output, trained, before, results, numbers, _notes(args, results))
        if args.push_to_hub:
            push(output, trained, args.hub_model_id or output.name)
        print(
            f"mIoU of {args.method}: {single.mean_iou:.4f}" + (f", multi-scale: {multi.mean_iou:.4f}" if multi else "")
        )
        print(f"always predicting the most frequent class: {majority.mean_iou:.4f}")
        print(f"trained for {done.seconds:.0f} s. The adapter, results.json and plots are in {output}")
    accelerator.end_training()
    return results


def _notes(args: Arguments, results: dict[str, Any]) -> str:
    """Return the text of the model card beyond the single-scale scores."""
    backbone = Path(args.backbone).name if Path(args.backbone).exists() else args.backbone
    multi = results["multi_scale"]
    more = f" At scales 0.5 to 1.75 with mirror images, the mean IoU is {multi['mean_iou']:.4f}." if multi else ""
    return f"""## The base model

A ViT with a SETR-PUP head, from `segmentation/` in the examples of gated_prompt. The adapter contains the weights of
the head:

```python
from paper.segmentation.setr import SetrPupForSemanticSegmentation

base = SetrPupForSemanticSegmentation(
    "{backbone}",
    num_classes={len(results["class_names"])},
    auxiliary_blocks={args.auxiliary_blocks},
    channels={args.head_channels},
)
```

## Training

{results["num_train"]} training and {results["num_test"]} test images. The scores above are single-scale.{more}
Always predicting the most frequent class has a mean IoU of {results["majority_class"]["mean_iou"]:.4f}."""


if __name__ == "__main__":
    with mistakes_in_one_line(), failure_is_noted():
        main()
