# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What a run leaves behind to be used: the probe, and the best of what was trained, each with its predictor.json."""

import os
import shutil
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors.torch import save_file
from torch import nn

import gated_prompt
from gated_prompt import GatedPromptError
from recipe.methods import backbone_kind, resolve_pooling
from recipe.reporting import has_prompts, plot_gates

from .bench import Bench
from .measures import Measure
from .predictor import PROBE, Predictor
from .probing import Probe
from .runs import Run, saved_in

SETTINGS_THAT_CHANGE_NOTHING = ("output_dir", "cache_dir", "dataloader_num_workers", "report_to")


def refuse_other_settings(old: dict[str, Any], new: dict[str, Any], output: Path) -> None:
    """Raises:
    GatedPromptError: a folder holds a run with other settings or data, with which this one cannot go on.
    """
    different = [name for name in new if old.get(name) != new[name] and name not in SETTINGS_THAT_CHANGE_NOTHING]
    if different:
        name = different[0]
        raise GatedPromptError(
            f"{output} holds a run with other settings ({', '.join(different)}; {name} was {old.get(name)}, now "
            f"{new[name]}); give another --output_dir, or remove the folder"
        )


def leave_probe(folder: Path, probe: Probe, bench: Bench) -> None:
    """Write weight and bias of the probe."""
    folder.mkdir(exist_ok=True)
    partial = folder / f"{PROBE}.partial"
    save_file({"weight": probe.weight.contiguous(), "bias": probe.bias.contiguous()}, partial)
    os.replace(partial, folder / PROBE)
    _predictor("probe", "linear_probe", probe.block, bench).write(folder)


def leave_run(output: Path, best: Run, model: nn.Module, probe: Probe, bench: Bench) -> Path:
    """Copy what the best run has trained to `output`, for prompts with a card; return where it lies."""
    method = best.record["method"]
    kind = saved_in(method)
    folder = output / kind
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(best.folder / kind, folder)
    if isinstance(model, PeftModel) and has_prompts(model):
        plot_gates(folder / "gates.png", model)
        gated_prompt.write_card(folder, _card(model, best, bench))
    _predictor(kind, method, probe.block, bench).write(folder)
    return folder


def _predictor(kind: str, method: str, block: int, bench: Bench) -> Predictor:
    args, train = bench.args, bench.parts.train
    pooled = resolve_pooling(bench.prompts.pooling, backbone_kind(args.backbone, args.backbone_kind) == "mae")
    return Predictor(
        kind=kind,
        method=method,
        backbone=args.backbone,
        base=dict(bench.base),
        block=block,
        preparation=dict(bench.preparation),
        problem=train.problem,
        names=list(train.names),
        pooling="patches" if pooled is not None else None,
    )


def _card(model: PeftModel, best: Run, bench: Bench) -> Any:
    measure: Measure = bench.measure
    value = measure(best.scores, bench.parts.validation.targets)
    card = gated_prompt.model_card(
        model,
        base_model=bench.args.backbone,
        dataset=Path(bench.parts.train.source).name,
        split="validation",
        metrics={measure.name: value},
        labels=bench.parts.train.names,
        picture="gates.png",
        notes=f"""## Training

{len(bench.parts.train)} pictures to train on; the {len(bench.parts.validation)} of the validation part chose learning
rates and epoch ({best.record["best_epoch"]}), so the number above is somewhat too good.""",
    )
    count = bench.base.get("num_hidden_layers")
    if count is not None:  # the lines that load the base have to leave the same blocks out
        head = f"num_labels={len(bench.parts.train.names)}"
        card.content = card.content.replace(head, f"{head}, num_hidden_layers={count}", 1)
    return card
