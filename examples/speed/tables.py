# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Format `results.json` as Markdown tables. Ratios are taken within a round, with the median over all rounds."""

from statistics import median
from typing import Any

LABELS = {
    "plain": "(a) plain ViT",
    "one_token": "(a+1) plain ViT, one trained token",
    "extra_tokens": "(b) P trained tokens",
    "research": "(c) usual research code",
    "lora": "(d) LoRA, rank 8, q and v",
    "gated": "gated prompts, gates at sigmoid(-5)",
    "pruned": "gated prompts, all gates closed, pruned (eval mode)",
    "half": "gated prompts, half of the blocks (`read_from`)",
    "research_deep": "(c-deep) usual research code of VPT-deep",
    "deep": "VPT-deep, P per block",
    "deep_dropout": "VPT-deep, P per block, prompt dropout 0.1",
    "zero_start": "zero-start prompts, P per block",
}
REFERENCES = {
    "train_step": ("one_token", "extra_tokens", "research", "research_deep"),
    "forward": ("plain", "extra_tokens", "research", "research_deep"),
}


def ratio(seconds: dict[str, list[float]], name: str, reference: str) -> float:
    """Return the median over the rounds of time / reference time in the same round."""
    return median(a / b for a, b in zip(seconds[name], seconds[reference], strict=True))


def _seconds(table: dict[str, Any], kind: str) -> dict[str, list[float]]:
    """Return the measurements by round; memory has only one."""
    return {name: [value] for name, value in table.get(kind, {}).items()} if kind == "memory" else table[kind]


def _cell(seconds: dict[str, list[float]], name: str, reference: str) -> str:
    return f"{ratio(seconds, name, reference):.2f}" if {name, reference} <= seconds.keys() else "-"


SUMMARY = {  # heading: kind of step, contender, reference
    "gated: train step / (b)": ("train_step", "gated", "extra_tokens"),
    "gated: train step / (c)": ("train_step", "gated", "research"),
    "pruned: forward / (a)": ("forward", "pruned", "plain"),
    "deep: forward / (a+1)": ("forward", "deep", "one_token"),
    "deep: train step / (a+1)": ("train_step", "deep", "one_token"),
    "deep: train step / (c-deep)": ("train_step", "deep", "research_deep"),
    "deep: memory / (c-deep)": ("memory", "deep", "research_deep"),
}


def summary(results: dict[str, Any]) -> list[str]:
    """Return the lines of one table over all sizes and numbers of prompts."""
    lines = [f"| ViT, P | {' | '.join(SUMMARY)} |", "|" + "---|" * (1 + len(SUMMARY))]
    for key, table in sorted(results["tables"].items(), key=lambda item: _order(item[0])):
        size, prompts = key.split("-")
        cells = [_cell(_seconds(table, kind), name, other) for kind, name, other in SUMMARY.values()]
        lines.append(f"| {size[0].upper()}/16, {prompts} | {' | '.join(cells)} |")
    return lines


def _order(key: str) -> tuple[bool, int]:
    size, prompts = key.split("-")
    return size == "base", int(prompts)


def tables(results: dict[str, Any]) -> str:
    """Return the summary, one table per size and number of prompts, and one of the adapters."""
    machine, settings = results["machine"], results["settings"]
    libraries = ", ".join(f"{name} {machine[name]}" for name in ("torch", "transformers", "peft"))
    precision = ("bfloat16 autocast" if settings["bf16"] else "float32") + (
        ", compiled" if settings["compiled"] else ""
    )
    lines = [
        f"Machine: {machine['device']} ({machine['processor']}), {machine['threads']} threads; {libraries}.",
        f"Batch {settings['batch']} of 224 x 224 pixels, {precision}; medians over interleaved rounds.",
        "",
        *summary(results),
        "",
    ]
    for key, table in sorted(results["tables"].items(), key=lambda item: _order(item[0])):
        size, _, prompts = key.partition("-")
        rounds = len(next(iter(table["forward"].values())))
        lines += [f"### ViT-{size[0].upper()}/16, P = {prompts} ({rounds} rounds)", "", *_table(table), ""]
    lines += [
        "### Adapters without a head",
        "",
        "| size | P | file | load one more | switch |",
        "|---|---|---|---|---|",
    ]
    for key, row in results.items():
        if key.startswith("adapters-"):
            size = key.removeprefix("adapters-")
            lines.append(
                f"| {size} | {row['prompts']} | {row['file_kB']} kB | {row['load_ms']} ms | {row['switch_ms']} ms |"
            )
    return "\n".join(lines) + "\n"


def _table(table: dict[str, Any]) -> list[str]:
    memory: dict[str, float] = table.get("memory", {})
    head = ["", "train step", "/ (a+1)", "/ (b)", "/ (c)", "/ (c-deep)"]
    head += ["forward", "/ (a)", "/ (b)", "/ (c)", "/ (c-deep)"]
    rows = ["| " + " | ".join(head + (["peak memory"] if memory else [])) + " |"]
    rows.append("|" + "---|" * (len(head) + bool(memory)))
    for name, label in LABELS.items():
        if name not in table["train_step"]:
            continue
        cells = [label]
        for kind, references in REFERENCES.items():
            seconds = table[kind]
            cells.append(f"{median(seconds[name]):.3f} s")
            cells += [_cell(seconds, name, other) for other in references]
        cells += [f"{memory[name]:.0f} MiB"] if memory else []
        rows.append("| " + " | ".join(cells) + " |")
    return rows
