# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What a run leaves behind beside its page: results.json, gates.png and the model card of an adapter."""

import dataclasses
import json
import os
import platform
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import accelerate
import peft
import torch
import transformers
from huggingface_hub import HfApi, ModelCard
from peft import PeftModel

import gated_prompt
from gated_prompt import plots

from ..inspect.readouts import prompts_are_active
from ..predictor import FILE as PREDICTOR
from ..sharing.quoting import markdown

PLACES = (
    "backbone",
    "output_dir",
    "data_dir",
    "resume_from_checkpoint",
    "hub_model_id",
)  # settings that can hold a path


def read_out(model: torch.nn.Module) -> dict[str, list[Any]]:
    """Gates, temperatures and selection ratios of the active adapter as plain lists. Empty without prompts."""
    if not prompts_are_active(model):
        return {}
    heads = gated_prompt.head_gates(model).tolist()  # with zero start, for each block
    return {
        **({"head_gates": heads} if heads else {}),
        "gates": gated_prompt.gates(model).tolist(),
        "temperatures": gated_prompt.temperatures(model).tolist(),
        "selection_ratios": gated_prompt.selection_ratios(model).tolist(),
    }


def environment() -> dict[str, Any]:
    """Machine, peak memory and versions that a result depends on."""
    libraries = (gated_prompt, peft, transformers, torch, accelerate)
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        peak = torch.cuda.max_memory_allocated() // 2**20
    else:  # resident memory of the process: bytes on macOS, KiB elsewhere
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (2**20 if sys.platform == "darwin" else 2**10)
    return {
        "device": torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads",
        "peak_memory_mib": peak,
        "versions": {"python": platform.python_version(), **{lib.__name__: lib.__version__ for lib in libraries}},
    }


def write_results(
    output: Path, model: Any, before: dict[str, Any], results: dict[str, Any], metrics: dict[str, float], notes: str
) -> None:
    """Write results.json, adapter/ or the whole model/, and for prompts their card and gates.png.

    `metrics` (the Hub's name of each -> value) and `notes` (Markdown) go into the card.
    """
    if prompts_are_active(model):
        config = model.active_peft_config
        results["settings"] |= {k: v for k, v in dataclasses.asdict(config).items() if k in results["settings"]}
        results |= {"before": before, "after": read_out(model)}
        results["blocks"] = {
            "gates": list(config.gated_block_indices(config.num_layers)),
            "temperatures": list(range(config.insert_at, config.last_block(config.num_layers) + 1)),
        }
        model.save_pretrained(output / "adapter")
        plot_gates(output / "gates.png", model)
        shutil.copy(output / "gates.png", output / "adapter")
        write_card(output / "adapter", model, results, metrics, notes)
    else:
        model.save_pretrained(output / _folder(model))
    write_json(output / "results.json", results)


def _folder(model: torch.nn.Module) -> str:
    """Where `write_results` puts what a method has trained: an adapter, gated prompts or LoRA, or a whole model."""
    return "adapter" if isinstance(model, PeftModel) else "model"


def push(output: Path, model: torch.nn.Module, repository: str) -> None:
    """Upload what `write_results` wrote: an adapter, for prompts with card and picture, or the whole model."""
    if prompts_are_active(model):
        card = ModelCard.load(output / "adapter" / "README.md")
        gated_prompt.push_to_hub(
            model, repository, card=card, files=[output / "gates.png", *(output / "adapter").glob(PREDICTOR)]
        )
    else:
        repo = HfApi().create_repo(repository, exist_ok=True)
        HfApi().upload_folder(repo_id=repo.repo_id, folder_path=output / _folder(model))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file atomically."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(partial, path)


def plot_gates(path: Path, model: PeftModel) -> None:
    """Draw gate and temperature by block, as they are now and as they started."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    plots.plot_gates({"learned": model}, ax=axes[0])
    plots.plot_temperatures({"learned": model}, ax=axes[1])
    figure.savefig(path, dpi=120)
    plt.close(figure)


def write_card(folder: Path, model: PeftModel, results: dict[str, Any], metrics: dict[str, float], notes: str) -> None:
    """Write the adapter's README.md: how to load it, how it came about, what its gates look like."""
    settings = "".join(f"- `{k}`: {markdown(v)}\n" for k, v in results["settings"].items() if k not in PLACES)
    card = gated_prompt.model_card(
        model,
        repo_id=results["settings"]["hub_model_id"],
        base_model=results["settings"]["backbone"],
        dataset=results["task"],
        split=results["data"][1]["split"],
        metrics=metrics,
        labels=results["class_names"],
        picture="gates.png",
        notes=f"""{notes}

One run with seed {results["settings"]["seed"]}, made with gated_prompt {results["versions"]["gated_prompt"]} and these
settings:

{settings}""",
    )
    gated_prompt.write_card(folder, card)
