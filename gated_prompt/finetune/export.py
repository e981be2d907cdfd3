# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The usable output of a run: the probe and the best trained model, each with its predictor.json."""

import shutil
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn

import gated_prompt

from ..errors import GatedPromptError
from ..sharing.classifier import HEAD
from .experiment import Bench
from .metrics import Measure
from .probing import Probe
from .reporting import has_prompts, plot_gates
from .runs import Run
from .trained import save_tensors

SETTINGS_THAT_CHANGE_NOTHING = ("output_dir", "cache_dir", "dataloader_num_workers", "report_to")


def refuse_other_settings(old: dict[str, Any], new: dict[str, Any], output: Path) -> None:
    """Raises:
    GatedPromptError: a folder holds a run with other settings or data, with which this one cannot continue.
    """
    different = [name for name in new if old.get(name) != new[name] and name not in SETTINGS_THAT_CHANGE_NOTHING]
    if different:
        name = different[0]
        raise GatedPromptError(
            f"{output} holds a run with other settings ({', '.join(different)}; {name} was {old.get(name)}, now "
            f"{new[name]}); give another --output_dir, or remove the folder"
        )


def leave_probe(folder: Path, probe: Probe, bench: Bench) -> None:
    """Write the probe as the head that it is."""
    save_tensors(dict(zip(HEAD, (probe.weight, probe.bias), strict=True)), folder)
    bench.predictor_of(None).write(folder)


def leave_run(output: Path, best: Run, model: nn.Module, bench: Bench) -> Path:
    """Copy what the best run has trained to `output`, for prompts with a card; return its folder."""
    folder = output / best.kept.name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(best.kept, folder)
    if isinstance(model, PeftModel) and has_prompts(model):
        plot_gates(folder / "gates.png", model)
        gated_prompt.write_card(folder, _card(model, best, bench))
    return folder


def _card(model: PeftModel, best: Run, bench: Bench) -> Any:
    measure: Measure = bench.measure
    value = measure(best.scores, bench.parts.validation.targets)
    return gated_prompt.model_card(
        model,
        base_model=bench.args.backbone,
        dataset=Path(bench.parts.train.source).name,
        split="validation",
        metrics={measure.name: value},
        labels=bench.parts.train.names,
        picture="gates.png",
        predictor=True,
        notes=f"""## Training

{len(bench.parts.train)} images to train on; the {len(bench.parts.validation)} of the validation part chose learning
rates and epoch ({best.record["best_epoch"]}), so the number above is slightly optimistic.""",
    )
