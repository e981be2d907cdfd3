# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The model card of an adapter: what it is, how to load it, how good it is and what its gates have learned."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from peft import PeftModel
from torch import nn

from ..config import GatedPromptConfig
from ..errors import GatedPromptError
from ..files.folder import locked, replace_text
from ..inspect.readouts import gates, head_gates, selection_ratios, temperatures
from .quoting import code_span, line, markdown
from .usage import usage, usage_by_predictor

FOLDER, PLACE = "path/of/this/adapter", "path/or/hub-id/of/this/adapter"
ADDRESS = "/:?=&#%.~-_"  # signs of a path or an address. All others are written as %XX
CARD_NAME = "README.md"
MOST_NAMES = 200  # of classes in a card
SHARE = re.compile("accuracy|precision|recall|f1|iou|auc|auroc|dice|map$", re.IGNORECASE)  # metrics that are shares
PAPER = "Improving Visual Prompt Tuning for Self-supervised Vision Transformers"
CITATION = f"""```bibtex
@inproceedings{{yoo2023improving,
  title     = {{{PAPER}}},
  author    = {{Yoo, Seungryong and Kim, Eunji and Jung, Dahuin and Lee, Jungbeom and Yoon, Sungroh}},
  booktitle = {{Proceedings of the 40th International Conference on Machine Learning}},
  pages     = {{40075--40092}},
  year      = {{2023}},
  url       = {{https://arxiv.org/abs/2306.05067}}
}}
```"""


def model_card(
    model: PeftModel,
    *,
    adapter_name: str | None = None,
    repo_id: str | None = None,
    base_model: str | os.PathLike[str] | None = None,
    dataset: str | None = None,
    split: str | None = None,
    metrics: Mapping[str, float] | None = None,
    task: str | None = None,
    labels: Sequence[str] | None = None,
    license: str | None = None,
    picture: str | None = None,
    notes: str | None = None,
    predictor: bool = False,
) -> ModelCard:
    """Describe one adapter in the form that the Hub reads. Nothing is written, and the Hub is not contacted.

    Args:
        model: the model with the adapter.
        adapter_name: which adapter. None means the active one.
        repo_id: where the adapter will live, `user/name`, for the lines that load it. None means a placeholder.
        base_model: Hub id of the base. None means what the base was loaded from. Only a Hub id `user/name` enters the
            metadata. Of a local folder the card gives the name, never the path.
        dataset: Hub id or plain name of the data that the metrics were measured on. Only a Hub id `user/name` is
            listed under `datasets`.
        split: part of `dataset` that was scored, such as `test` or `validation`.
        metrics: the Hub's name of each metric, such as `accuracy` or `mean_iou`, and its value, as a share of 1.
        task: the Hub's name of the task. None means that the class of the base decides.
        labels: class names in the order of the logits. None means those of the base's config, if it names any.
        license: the Hub's name of the adapter's licence, such as `apache-2.0`.
        picture: name of an image file that will stand beside the card.
        notes: Markdown for the end of the card.
        predictor: whether `predictor.json` will stand beside the card (`gated_prompt.predictor`). The lines that load
            the adapter then use it.

    Raises:
        GatedPromptError: the model has no such adapter, a metric comes without `dataset` or `split`, is not finite,
            or is a percentage where the Hub wants a share.

    Example:
        ```python
        card = gated_prompt.model_card(model, dataset="me/birds", split="test", metrics={"accuracy": 0.93})
        print(card.data.metrics, card.text[:40])
        ```
    """
    table = _gate_table(model, adapter_name)  # first: refuses an unknown adapter
    config: GatedPromptConfig = model.peft_config[adapter_name or model.active_adapter]
    base = model.get_base_model()
    source = base_model or config.base_model_name_or_path or getattr(base, "name_or_path", None)
    base_id, base_name = hub_id(source), last_part(source) or type(base).__name__
    task = line(task or _find_task(base, config))
    title = line(f"{_kind(config)} for {base_id or base_name}" + (f" on {dataset}" if dataset else ""))
    data = ModelCardData(
        base_model=base_id,
        datasets=[dataset] if dataset and hub_id(dataset) else None,
        eval_results=_results(title, task, dataset, split, metrics or {}),
        library_name="peft",
        license=line(license) if license else None,
        metrics=[line(name) for name in metrics] if metrics else None,
        model_name=title,
        pipeline_tag=task,
        tags=["gated-prompt", "visual-prompt-tuning", *([f"base_model:adapter:{base_id}"] if base_id else [])],
    )
    about = [
        f"- Base model: {_link(base_id, '') if base_id else f'{code_span(base_name)} (no Hub id known)'}",
        f"- Prompts: {config.num_virtual_tokens} tokens"
        + (f" at each block from {config.insert_at}" if config.deep else f", inserted at block {config.insert_at}")
        + f" of {config.num_layers}"
        + (f", read from block {config.read_from}" if config.read_from is not None else "")
        + f", pooling {config.pooling or 'as in the base'}",
    ]
    if dataset:
        about.append(f"- Data: {_link(hub_id(dataset), 'datasets/') or markdown(dataset)}")
    scored = f"on the {markdown(split)} part"
    about += [f"- {markdown(name)} {scored}: **{value:.4f}**" for name, value in (metrics or {}).items()]
    names = labels if labels is not None else _labels(base)
    if names:
        shown = names[:MOST_NAMES] if predictor else names  # the whole list is in predictor.json
        more = f", ... ({len(names)} in all: `predictor.json`)" if len(shown) < len(names) else ""
        about.append("- Classes: " + ", ".join(map(markdown, shown)) + more)
    if license:
        about.append(f"- Licence: {markdown(license)}")
    place, base_place = hub_id(repo_id), base_id or f"path/of/{base_name}"
    parts = [
        f"# {markdown(title)}",
        usage_by_predictor(base_place, base_id is not None, place or FOLDER)
        if predictor
        else usage(base, config, base_place, base_id is not None, place or PLACE, names),
        "\n".join(about),
        "## What the prompts have learned",
        *(
            [f"![Gates and temperatures by block]({quote(picture, safe=ADDRESS, errors='replace')})"]
            if picture
            else []
        ),
        table,
        *([_encodable(notes.strip())] if notes else []),
        f"## Citation\n\nThe method is that of *{PAPER}* ([arXiv 2306.05067](https://arxiv.org/abs/2306.05067)).",
        CITATION,
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def write_card(folder: str | os.PathLike[str], card: ModelCard) -> Path:
    """Put `card` into `folder` as README.md, atomically, in place of the template that PEFT writes there.

    Args:
        folder: an adapter's folder.
        card: what `model_card` returned.

    Returns:
        The path of the README.md.

    Raises:
        GatedPromptError: there is no such folder.

    Example:
        ```python
        gated_prompt.save(model, "birds")
        gated_prompt.write_card("birds", gated_prompt.model_card(model, license="apache-2.0"))
        ```
    """
    path = Path(folder, CARD_NAME)
    if not path.parent.is_dir():
        raise GatedPromptError(f"{path.parent} is not a folder. Save the adapter there first.")
    with locked(path.parent):
        replace_text(path, str(card))
    return path


def hub_id(source: str | os.PathLike[str] | None) -> str | None:
    """`source` if it can be the Hub's id `user/name`, else None: for a folder, a plain name or nothing."""
    if source is None or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source), re.ASCII) or os.path.exists(source):
        return None
    try:
        validate_repo_id(str(source))
    except HFValidationError:
        return None
    return str(source)


def last_part(source: str | os.PathLike[str] | None) -> str:
    return re.split(r"[/\\]", str(source or "").rstrip("/\\"))[-1]  # a card may be made of either system's paths


def _link(repo_id: str | None, kind: str) -> str:
    return f"[{repo_id}](https://huggingface.co/{kind}{repo_id})" if repo_id else ""


def _kind(config: GatedPromptConfig) -> str:
    if config.deep:
        return "Zero-start visual prompts" if config.zero_start else "Deep visual prompts"
    return "Gated visual prompts" if config.gates else "Visual prompts"


def _find_task(base: nn.Module, config: GatedPromptConfig) -> str:
    tasks = {"Segment": "image-segmentation", "DepthEstimation": "depth-estimation"}
    named = next((task for part, task in tasks.items() if part in type(base).__name__), None)
    return named or ("image-classification" if config.modules_to_save else "image-feature-extraction")


def _labels(base: nn.Module) -> list[str]:
    by_index = getattr(getattr(base, "config", None), "id2label", None) or {}
    names = [str(by_index[index]) for index in sorted(by_index)]
    return [] if names == [f"LABEL_{index}" for index in range(len(names))] else names


def _encodable(text: str) -> str:
    return text.encode(errors="replace").decode()


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _results(
    name: str, task: str, dataset: str | None, split: str | None, metrics: Mapping[str, float]
) -> list[EvalResult] | None:
    if metrics and not (dataset and split):
        missing = " and ".join(what for what, value in (("dataset", dataset), ("split", split)) if not value)
        raise GatedPromptError(
            f"metrics {', '.join(metrics)} were given without {missing}. Say what they were measured on, "
            "for example dataset='me/birds', split='test'."
        )
    wrong = [f"{metric}={value}" for metric, value in metrics.items() if not _is_number(value)]
    if wrong:
        raise GatedPromptError(
            f"metrics must be finite numbers, not {', '.join(wrong)}. Leave out what was not measured."
        )
    percent = [
        f"{metric}={value}" for metric, value in metrics.items() if SHARE.search(metric) and not 0 <= value <= 1
    ]
    if percent:
        raise GatedPromptError(
            f"metrics {', '.join(percent)} are shares on the Hub and must lie between 0 and 1. Divide percentages "
            "by 100."
        )
    return [
        EvalResult(
            task_type=task,
            dataset_type=hub_id(dataset) or re.sub(r"[^\w.-]+", "-", line(dataset)).strip("-") or "data",
            dataset_name=line(dataset),
            dataset_split=line(split),
            metric_type=line(metric),
            metric_value=float(value),
        )
        for metric, value in metrics.items()
    ] or None


def _gate_table(model: PeftModel, adapter_name: str | None) -> str:
    """One row for each block that the prompts pass. The read-outs are those of `gated_prompt.gates` and so on."""
    gate, ratio, tau = (read(model, adapter_name).tolist() for read in (gates, selection_ratios, temperatures))
    config: GatedPromptConfig = model.peft_config[adapter_name or model.active_adapter]
    num_layers = config.num_layers or 0
    gated = {
        block: f"{g:.4g} | {r:.3f}"
        for block, g, r in zip(config.gated_block_indices(num_layers), gate, ratio, strict=True)
    }
    if config.zero_start:
        sizes = head_gates(model, adapter_name).abs().mean(1).tolist()
        rows = [
            f"| {block} | {size:.4g} | {t:.4g} |"
            for block, (size, t) in enumerate(zip(sizes, tau, strict=True), start=config.insert_at)
        ]
        return "\n".join(["| block | mean size of the head gates | temperature |", "|---|---|---|", *rows])
    rows = [
        f"| {block} | {gated.get(block, '- | -')} | {t:.4g} |" for block, t in enumerate(tau, start=config.insert_at)
    ]
    return "\n".join(["| block | gate | selection ratio | temperature |", "|---|---|---|---|", *rows])
