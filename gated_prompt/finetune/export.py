# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What a run leaves to use: the probe and the best trained model, each with its predictor.json."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn

import gated_prompt

from ..errors import GatedPromptError
from ..inspect.readouts import prompts_are_active
from ..predictor import Predictor, read_predictor
from ..segmentation.predictor import MaskPredictor
from ..sharing.classifier import HEAD, TENSORS
from ..training.checkpoints import trained_tensors
from .calibration import fit_temperature
from .familiarity import Familiar
from .image_experiment import ImageExperiment
from .metrics import Measure
from .probing import Study
from .report import plot_gates

if TYPE_CHECKING:
    from .runs import Run


def save_trained(model: nn.Module, folder: Path, predictor: Predictor | MaskPredictor) -> None:
    """Write what was trained of a model that was made of `predictor.load_base()`."""
    if prompts_are_active(model):
        gated_prompt.save(model, folder)
    elif isinstance(model, PeftModel):
        model.save_pretrained(folder)
    else:
        save_tensors(trained_tensors(model), folder)
    predictor.write(folder)


def save_tensors(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write tensors atomically, the head's among them."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{TENSORS}.partial"
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, partial)
    os.replace(partial, folder / TENSORS)


SETTINGS = "settings.json"
SETTINGS_THAT_CHANGE_NOTHING = ("output_dir", "cache_dir", "dataloader_num_workers", "report_to")


def refuse_other_settings(output: Path, new: dict[str, Any]) -> None:
    """Raises:
    GatedPromptError: a folder holds a run with other settings or data, with which this one cannot continue.
    """
    stored = output / SETTINGS
    old: dict[str, Any] = json.loads(stored.read_text()) if stored.is_file() else new
    different = [name for name in new if old.get(name) != new[name] and name not in SETTINGS_THAT_CHANGE_NOTHING]
    if different:
        name = different[0]
        raise GatedPromptError(
            f"{output} holds a run with other settings ({', '.join(different)}): {name} was {old.get(name)}, now "
            f"{new[name]}. Give another --output_dir, or remove the folder."
        )


def write_probe(folder: Path, probe: Study, features: Tensor, experiment: ImageExperiment) -> None:
    """Write the probe as a head, and a summary of the features (N, F) that it reads of the labelled images."""
    save_tensors(dict(zip(HEAD, (probe.weight, probe.bias), strict=True)), folder)
    unseen = experiment.division.scored
    temperature = fit_temperature(probe.chosen.scores, unseen.targets, unseen.problem)
    replace(experiment.predictor_of(None), temperature=temperature).write(folder)
    Familiar.of(features).write(folder)


def export_run(output: Path, best: "Run", kept: Path, model: nn.Module, experiment: ImageExperiment) -> Path:
    """Copy what the best run, or its refit, has left in `kept` to `output`, for prompts with a card.

    Its temperature is that of the validation part, by the best run.
    """
    folder = output / kept.name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(kept, folder)
    unseen = experiment.parts.validation
    temperature = fit_temperature(best.scores, unseen.targets, unseen.problem)
    replace(read_predictor(folder), temperature=temperature).write(folder)
    if isinstance(model, PeftModel) and prompts_are_active(model):
        plot_gates(folder / "gates.png", model)
        gated_prompt.write_card(folder, _card(model, best, experiment))
    return folder


def _card(model: PeftModel, best: "Run", experiment: ImageExperiment) -> Any:
    measure: Measure = experiment.measure
    value = measure(best.scores, experiment.parts.validation.targets)
    return gated_prompt.model_card(
        model,
        base_model=experiment.args.backbone,
        dataset=Path(experiment.parts.train.source).name,
        split="validation",
        metrics={measure.name: value},
        labels=experiment.parts.train.names,
        picture="gates.png",
        predictor=True,
        notes=f"""## Training

Trained on {len(experiment.parts.train)} images. The {len(experiment.parts.validation)} of the validation part chose
the learning rates and the epoch ({best.record["best_epoch"]}), so the number above is slightly
optimistic.{_again(experiment)}""",
    )


def _again(experiment: ImageExperiment) -> str:
    if not experiment.division.refit:
        return ""
    return (
        f" These weights were then trained on all {len(experiment.division.images)} labelled images in the same way."
    )
