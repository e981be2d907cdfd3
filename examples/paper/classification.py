# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""One classification run, from a task and a model to results.json.

The accuracy is that of the last epoch. The images that are scored are looked at once, when training is over, so
that no epoch can be chosen by them. `--curve` looks after every epoch, as the official code does, and reports the
epoch with the best validation accuracy beside the last.
"""

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator, PartialState
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm
from transformers import AutoConfig, get_cosine_schedule_with_warmup

from gated_prompt import initialize_head, initialize_prompts
from gated_prompt.finetune.methods import build_model
from gated_prompt.finetune.report import environment, push, read_out, write_json, write_results
from gated_prompt.images import LabelledImages
from gated_prompt.inspect.readouts import prompts_are_active
from gated_prompt.predictor import Predictor, preparation_of
from gated_prompt.sharing.backbone import load_backbone
from gated_prompt.training import loop
from gated_prompt.training.optim import optimizer_groups
from gated_prompt.training.token_cache import CachedPrefix, StartAtBlock
from gated_prompt.transforms import CachedImages, TransformedImages

from .arguments import RunArguments
from .curve import Curve
from .probe import probe_accuracy
from .records import fingerprint, identity_of, machine
from .tasks import Task


def build(args: RunArguments, prompts: Any, task: Task) -> torch.nn.Module:
    """The model that the arguments ask for, with a head for the task's classes. See `build_model`.

    A head that the backbone brings, as MoCo v3's linear evaluation does for 1000 classes, is dropped and named.
    """
    model = build_model(
        args.backbone,
        args.method,
        prompts,
        task.class_names,
        kind=args.backbone_kind,
        lora_r=args.lora_r,
        head_init=args.head_init,
    )
    config = AutoConfig.from_pretrained(args.backbone)
    if any(name.endswith("ForImageClassification") for name in config.architectures or ()):
        PartialState().print(
            f"the head of {args.backbone} for {config.num_labels} classes is left out. A new one for "
            f"{len(task.class_names)} classes is trained."
        )
    return model


def evaluate(model: torch.nn.Module, loader: DataLoader[Any], accelerator: Accelerator) -> float:
    """Top-1 accuracy in [0, 1]."""
    model.eval()
    right: list[torch.Tensor] = []
    with torch.inference_mode():
        for pixels, labels in tqdm(loader, desc="evaluate", disable=not accelerator.is_main_process, leave=False):
            right.append(accelerator.gather_for_metrics(model(pixels).logits.argmax(1) == labels))
    return float(torch.cat(right).float().mean())


def train_and_score(
    args: RunArguments,
    prompts: Any,
    accelerator: Accelerator,
    output: Path,
    task: Task,
    model: torch.nn.Module,
    train: Dataset[Any],
    probed: Dataset[Any],
    scored: TransformedImages,
    l2: float = 1.0,
    validation: TransformedImages | None = None,
) -> dict[str, Any]:
    """Train, score, write everything, and return the content of results.json (empty but on the main process).

    `train`, `scored`: (pixels, class) of `task.train` and `task.eval`. `probed`: of `task.train` without augmentation,
    from which prompts and head start and a linear probe is made. `l2`: strength of the penalty of a head that starts
    as a probe. `validation`: scored after each epoch with `--curve`, None if `scored` has the validation images.
    """
    if args.preset == "paper":
        torch.backends.cudnn.allow_tf32 = False  # float32 as on the GPUs of the published runs
    before = read_out(model)
    count = min(len(task.train), args.max_train_samples or len(task.train))
    workers = args.dataloader_num_workers
    share = range(accelerator.process_index, count, accelerator.num_processes)
    batches = DataLoader(Subset(probed, share), args.per_device_eval_batch_size, num_workers=workers)
    # A checkpoint, if there is one, replaces both starts.
    if args.prompt_start != "random":
        initialize_prompts(model.to(accelerator.device), batches, method=args.prompt_start, seed=args.seed)
    if args.head_init == "probe":
        initialize_head(model.to(accelerator.device), batches, l2=l2)
    kept = isinstance(train, (CachedImages, CachedPrefix))  # in memory or mapped: no process has to decode
    loader = loop.training_loader(
        Subset(train, range(count)), args.per_device_train_batch_size, 0 if kept else workers
    )
    # With generators of their own: scores in between must not shift what the dropout draws.
    eval_loader, validation_loader = (
        DataLoader(data, args.per_device_eval_batch_size, num_workers=workers, generator=torch.Generator())
        for data in (scored, validation or scored)
    )

    rates = {
        "prompts": args.prompt_learning_rate,
        "gates": args.gate_learning_rate,
        "temperatures": args.temperature_learning_rate,
        "head": args.head_learning_rate,
    }
    own = {name: {"lr": rate} for name, rate in rates.items() if rate is not None}
    groups = optimizer_groups(model, args.learning_rate, args.weight_decay, own)
    trained = sum(parameter.numel() for group in groups for parameter in group["params"])
    accelerator.print(f"{args.method}: {trained} trained parameters")
    optimizer: torch.optim.Optimizer = (
        torch.optim.SGD(groups, args.learning_rate, args.momentum)
        if args.optimizer == "sgd"
        else torch.optim.AdamW(groups, args.learning_rate)
    )
    batch = args.per_device_train_batch_size * accelerator.num_processes
    unit = math.ceil(count / batch) if args.schedule_by == "step" else 1
    schedule = get_cosine_schedule_with_warmup(optimizer, unit * args.warmup_epochs, unit * args.num_train_epochs)
    model, optimizer, loader, eval_loader, validation_loader = accelerator.prepare(
        model, optimizer, loader, eval_loader, validation_loader
    )
    if args.report_to:
        accelerator.init_trackers("gated_prompt", config={**vars(args), **vars(prompts)})

    shortcut = StartAtBlock(accelerator.unwrap_model(model)) if isinstance(train, CachedPrefix) else None
    if shortcut is not None:
        shortcut.open()

    def scores() -> dict[str, float]:
        if shortcut is not None:
            shortcut.close()
        found = {"validation": evaluate(model, validation_loader, accelerator)}
        if validation is not None:
            found["test"] = evaluate(model, eval_loader, accelerator)
        if shortcut is not None:
            shortcut.open()
        return found

    curve = Curve(accelerator, optimizer, scores if args.curve else None)
    done = loop.train(
        accelerator,
        model,
        loader,
        optimizer,
        schedule,
        lambda pixels, labels: curve.add(F.cross_entropy(model(pixels).logits, labels)),
        loop.plan_of(args, output, args.num_train_epochs * len(loader), args.schedule_by),
        getattr(train, "set_epoch", None),
        curve,
    )
    if shortcut is not None:
        shortcut.close()

    accuracy = None if curve.diverged else evaluate(model, eval_loader, accelerator)
    results: dict[str, Any] = {}
    if accelerator.is_main_process:
        results = {
            "task": task.name,
            "data": [_data(task.train), _data(task.eval)],
            "backbone": identity_of(args.backbone),
            "class_names": task.class_names,
            "method": args.method,
            "accuracy": accuracy,
            "diverged": curve.diverged,
            "best_epoch": curve.best(),
            "curve": curve.rows,
            "linear_probe_accuracy": None,
            "num_train": count,
            "num_eval": len(task.eval),
            "trained_parameters": trained,
            "train_seconds": round(done.seconds, 1),
            "steps": done.steps,
            "settings": {**vars(args), **vars(prompts)},
            "mixed_precision": accelerator.mixed_precision,
            "machine": machine(),
            **environment(),
        }
        if curve.diverged:
            write_json(output / "results.json", results)
            accelerator.end_training()
            return results
        if args.linear_probe:
            backbone = load_backbone(args.backbone).to(accelerator.device)
            results["linear_probe_accuracy"] = probe_accuracy(
                backbone, Subset(probed, range(count)), scored, len(task.class_names)
            )
        metrics, notes = {"accuracy": float(accuracy or 0)}, _notes(results)
        write_results(output, accelerator.unwrap_model(model), before, results, metrics, notes)
        if prompts_are_active(accelerator.unwrap_model(model)):
            preparation = preparation_of(scored.transform)
            Predictor(task.class_names, preparation, backbone=args.backbone).write(output / "adapter")
        if args.push_to_hub:
            push(output, accelerator.unwrap_model(model), args.hub_model_id or output.name)
        print(f"accuracy of {args.method} on {task.eval.provenance.split}: {accuracy:.4f}")
        if results["best_epoch"] and validation is not None:
            best = results["best_epoch"]
            print(f"accuracy of the best epoch on validation, {best['epoch']}: {best['test']:.4f}")
        if args.linear_probe:
            print(f"accuracy of a linear probe: {results['linear_probe_accuracy']:.4f}")
        print(f"trained for {done.seconds:.0f} s. See results.json and the trained weights in {output}")
    accelerator.end_training()
    return results


def _data(images: LabelledImages) -> dict[str, Any]:
    return {**images.provenance.to_dict(), "fingerprint": fingerprint(images)}


def _notes(results: dict[str, Any]) -> str:
    train, scored = results["data"]
    probe_accuracy = results["linear_probe_accuracy"]
    beside = "" if probe_accuracy is None else f" That of a linear probe of the same backbone is {probe_accuracy:.4f}."
    return f"""## Training

{results["num_train"]} images of {train["split"]} to train on and {results["num_eval"]} of {scored["split"]} to score,
from {train["source"]}. The accuracy is that of the last epoch.{beside}"""
