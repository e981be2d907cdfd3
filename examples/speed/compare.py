# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Time gated prompts against the alternatives, and write the tables.

    python examples/speed/compare.py --sizes small base --output_dir runs/speed
    python examples/speed/compare.py --device cuda --bf16 true --batch 64 --output_dir runs/speed-gpu

Each round runs every contender once, so that a slow minute of the machine affects all of them. Ratios are taken within
a round, and the tables show their median over the rounds. Run nothing else meanwhile. Writes `results.json` (all
numbers, with machine and versions) and `results.md` (the tables) to `--output_dir`. Existing results are not measured
again.
"""

import json
import os
import platform
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # examples/, where the packages are

import peft
import torch
import transformers
from tqdm import tqdm

import gated_prompt
from gated_prompt.command_line import CommandLine, mistakes_in_one_line
from gated_prompt.finetune.report import write_json
from gated_prompt.finetune.shared_arguments import option
from speed.clock import Run, Setting, adapter_times, peak_memory
from speed.contenders import CONTENDERS
from speed.tables import tables


@dataclass
class Arguments:
    """What to measure."""

    sizes: list[str] = field(default_factory=lambda: ["small", "base"], metadata={"help": "small, base: ViT-S, ViT-B"})
    prompts: list[int] = field(
        default_factory=lambda: [1, 10, 50, 100, 200], metadata={"help": "numbers of prompts, P"}
    )
    contenders: list[str] = field(
        default_factory=lambda: list(CONTENDERS), metadata={"help": f"any of: {', '.join(CONTENDERS)}"}
    )
    memory_prompts: list[int] = field(
        default_factory=lambda: [100], metadata={"help": "values of P to measure peak memory for"}
    )
    batch: int = option("images per step", 8)
    rounds: int = option("timed steps per contender, after one warm-up step", 5)
    device: str = option("cpu or cuda", "cpu")
    bf16: bool = option("autocast to bfloat16", False)
    compiled: bool = option("torch.compile", False)
    output_dir: str = option("folder for the results", "runs/speed")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure the requested results that are missing. Return the content of results.json."""
    (args,) = CommandLine([Arguments], __doc__).parse(argv)
    unknown = [name for name in args.contenders if name not in CONTENDERS]
    if unknown:
        sys.exit(f"error: unknown contenders {', '.join(unknown)}. Choose from: {', '.join(CONTENDERS)}.")
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    path = output / "results.json"
    settings = {name: getattr(args, name) for name in ("batch", "device", "bf16", "compiled")}
    results = json.loads(path.read_text()) if path.exists() else {"tables": {}, "settings": settings}
    if results["settings"] != settings:
        sys.exit(f"error: {path} was measured with {results['settings']}, not {settings}. Give another --output_dir.")
    results["machine"] = machine(args.device)
    for size in args.sizes:
        setting = Setting(size, args.batch, args.device, args.bf16, args.compiled)
        for prompts in args.prompts:
            key = f"{size}-{prompts}"
            if key not in results["tables"]:
                results["tables"][key] = times(args, setting, prompts)
                write_json(path, results)
            table = results["tables"][key]
            if prompts in args.memory_prompts and "memory" not in table:
                table["memory"] = {
                    name: peak_memory(name, prompts, setting) for name in tqdm(args.contenders, desc=f"memory {key}")
                }
                write_json(path, results)
        if f"adapters-{size}" not in results:
            results[f"adapters-{size}"] = adapter_times(size, prompts=100)
            write_json(path, results)
    text = tables(results)
    (output / "results.md").write_text(text)
    print(text)
    return results


def times(args: Arguments, setting: Setting, prompts: int) -> dict[str, Any]:
    """Return the seconds of every contender in every round, by kind of step."""
    runs = {name: Run(name, prompts, setting) for name in args.contenders}
    table: dict[str, Any] = {}
    for kind in ("train_step", "forward"):
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for turn in tqdm(range(args.rounds + 1), desc=f"{setting.size}, P={prompts}, {kind}", leave=False):
            for name, run in runs.items():
                spent = getattr(run, kind)()
                if turn:  # the first warms up
                    seconds[name].append(round(spent, 5))
        table[kind] = seconds
        print(f"{setting.size}, P={prompts}, {kind}: " + ", ".join(f"{n} {median(s):.3f}" for n, s in seconds.items()))
    return table


def machine(device: str) -> dict[str, str]:
    """Return the hardware and library versions."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else f"{os.cpu_count()} CPU cores"
    return {
        "device": name,
        "processor": platform.processor() or platform.machine(),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "gated_prompt": gated_prompt.__version__,
    }


if __name__ == "__main__":
    with mistakes_in_one_line():
        main()
