# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""One training run of a method, each in a folder of its own. A finished one is read, not repeated."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup

from ...segmentation.predictor import MaskPredictor
from ...training.loop import LoopConfig, TrainerCallback, train, training_loader
from ...training.optim import optimizer_groups
from ..export import save_trained
from ..recipe import PROMPT_METHODS
from ..report import read_out, write_json
from .bench import MaskBench, segmenter_of
from .best_map import BestMap
from .crops import Crops, crop_size
from .linear_map import LinearMap
from .losses import mask_loss
from .mask_set import MaskSet
from .scores import confusion_of
from .token_features import grids_of

RECORD, CONFUSIONS, CHECKPOINTS = "run.json", "confusions.safetensors", "checkpoints"


@dataclass(frozen=True)
class MaskRun:
    """What a finished run left in its folder: `record`, and confusion matrices (N, K, K) of the validation images.

    They are empty for a run on all labelled images, which has nothing to be scored on.
    """

    folder: Path
    record: dict[str, Any]
    confusions: Tensor

    @property
    def kept(self) -> Path:
        """The folder with what was trained."""
        return self.folder / kept_in(self.record["method"])


def run_method(
    bench: MaskBench,
    method: str,
    seed: int,
    train_set: MaskSet,
    validation: MaskSet | None,
    fitted: LinearMap,
    folder: Path,
    epochs: int | None = None,
) -> MaskRun:
    """Train a method from the fitted map on, and leave in `folder` what `finished` reads.

    Without `validation` the last weights are kept, of epoch `epochs` of a schedule of full length.
    """
    done = finished(folder)
    if done is not None:
        return done
    folder.mkdir(parents=True, exist_ok=True)
    args = bench.args
    accelerator, model = bench.start(method, seed, folder)
    bench.begin(model, method, fitted, train_set, seed)
    predictor, patch = bench.predictor, segmenter_of(model).patch_size
    grids = grids_of(train_set.sizes, predictor.preparation["short_side"], patch) * patch
    crop = crop_size([(height, width) for height, width in grids.tolist()], predictor.preparation["window"])
    crops = Crops(train_set, predictor, crop, seed if args.augment else None)
    main, head = bench.rates(method)
    own = {"head": {"lr": head}} | ({"gates": {"lr": main}} if method in PROMPT_METHODS else {})
    groups = optimizer_groups(model, main, args.weight_decay, _present(model, main, own))
    trained = sum(parameter.numel() for group in groups for parameter in group["params"])
    loader = training_loader(crops, args.per_device_train_batch_size, args.dataloader_num_workers)
    optimizer = torch.optim.AdamW(groups, main)
    wrapped, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    steps = args.num_train_epochs * len(loader)
    schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(args.warmup_ratio * steps), steps)
    if args.report_to is not None:
        accelerator.init_trackers("gated_prompt", config={"method": method, "seed": seed})
    watch: TrainerCallback = TrainerCallback()
    if validation is not None:
        watch = BestMap(model, partial(confusions_of, model, validation, predictor, accelerator))
    stored = any((folder / CHECKPOINTS).glob("step_*[0-9]"))
    if isinstance(watch, BestMap) and not stored:
        watch.after_epoch(0)
    plan = LoopConfig(
        steps=steps if epochs is None else epochs * len(loader),
        schedule_by="step",
        checkpoints=folder / CHECKPOINTS,
        checkpointing_steps="epoch",
        resume_from_checkpoint="latest" if stored else None,
        label=f"{method}, seed {seed}",
    )
    loss = partial(_loss, wrapped, args.loss == "ce_dice", bench.class_weights)
    done_training = train(accelerator, wrapped, loader, optimizer, schedule, loss, plan, crops.set_epoch, watch)
    record = {
        "method": method,
        "seed": seed,
        "rates": {"main": main, "head": head},
        "best_epoch": watch.best if isinstance(watch, BestMap) else epochs,
        "curve": watch.curve if isinstance(watch, BestMap) else [],
        "trained_parameters": trained,
        "seconds": round(done_training.seconds, 1),
        "images": len(train_set),
    }
    confusions = torch.empty(0)
    if isinstance(watch, BestMap):
        watch.restore()
        confusions = watch.confusions
    if accelerator.is_main_process:
        save_trained(model, folder / kept_in(method), bench.predictor_of(method))  # type: ignore[arg-type]
        save_file({"confusions": confusions}, folder / CONFUSIONS)
        write_json(folder / RECORD, {**record, "learned": read_out(model)})
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    accelerator.wait_for_everyone()
    for tracker in accelerator.trackers:
        tracker.finish()
    return _read(folder)


def confusions_of(
    model: nn.Module,
    data: MaskSet,
    predictor: MaskPredictor,
    accelerator: Accelerator,
    look: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Confusion matrices int64 (N, K, K) of all images, which the processes of a run share among them.

    `look` is called with the index of each image of this process and its predicted label map.
    """
    training = model.training
    model.eval()
    count = len(data.names)
    found = torch.zeros(len(data), count, count, dtype=torch.int64, device=accelerator.device)
    for index in range(accelerator.process_index, len(data), accelerator.num_processes):
        labels = data.labels(index)
        predicted = torch.from_numpy(predictor.label_map(model, data.image(index)))
        found[index] = confusion_of(predicted, labels, count).to(found.device)
        if look is not None:
            look(index, predicted)
    model.train(training)
    total: Tensor = accelerator.reduce(found, "sum")
    return total.cpu()


def finished(folder: Path) -> MaskRun | None:
    """What an earlier call trained and left in this folder. None: it was not finished."""
    return _read(folder) if (folder / RECORD).is_file() else None


def kept_in(method: str) -> str:
    """Name of the folder that holds what was trained: an adapter, or parts of the model itself."""
    return "adapter" if method in PROMPT_METHODS or method == "lora" else "model"


def _read(folder: Path) -> MaskRun:
    return MaskRun(folder, json.loads((folder / RECORD).read_text()), load_file(folder / CONFUSIONS)["confusions"])


def _loss(model: nn.Module, dice: bool, class_weights: Tensor | None, pixels: Tensor, labels: Tensor) -> Tensor:
    return mask_loss(model(pixels).logits, labels, dice, class_weights)


def _present(model: nn.Module, main: float, own: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """The groups that a model has."""
    names = {group["name"] for group in optimizer_groups(model, main, 0.0, {})}
    return {name: settings for name, settings in own.items() if name in names}
