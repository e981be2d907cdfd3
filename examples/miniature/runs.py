# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The paper's comparisons in miniature: small backbones, small tasks, minutes on a CPU.

    python examples/miniature/run.py                       # digits and sprites, nothing to download
    python examples/miniature/run.py --data_dir FOLDER     # also CIFAR-10 and DTD from that folder

Each run adds a record to `--output_dir`; recorded runs are skipped. pages.py turns the records into the tables of
docs/miniature.md. grid.py defines what is compared, data.py the images.
"""

import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from gated_prompt import GatedPromptError, find_vision_transformer, initialize_prompts
from gated_prompt.command_line import CommandLine
from gated_prompt.finetune.methods import build_model
from gated_prompt.finetune.prompt_options import PromptArguments
from gated_prompt.finetune.reporting import read_out
from gated_prompt.training.groups import parameter_groups
from gated_prompt.training.quiet import quiet_loading
from gated_prompt.training.token_cache import StartAtBlock, prefix_tokens

from . import data, records
from .grid import BACKBONES, VARIANTS, MiniRun, missing_runs

RECIPE: Mapping[str, Any] = {
    "epochs": 8,
    "warmup_epochs": 1,
    "batch_size": 10,
    "head_rate": 0.03,  # of all but "linear", which searches the rate of its head
    "num_virtual_tokens": 10,
    "gate_init": -3.0,
    "pooling": "prompts_and_patches",
    "images": data.SIZES,
}
CURVES = ("shallow", "gated", "gated_sample", "gated_kmeans")  # record validation accuracy after each epoch
HERE = Path(__file__).parent


@dataclass
class Arguments:
    """What to run."""

    output_dir: str = field(default="runs/miniature", metadata={"help": "folder for the records"})
    data_dir: str | None = field(default=None, metadata={"help": "folder with cifar10_jpeg and dtd10"})
    backbones: list[str] = field(default_factory=lambda: list(BACKBONES), metadata={"help": "mae, supervised"})
    tasks: list[str] | None = field(default=None, metadata={"help": "default: all whose data are available"})
    variants: list[str] = field(default_factory=lambda: list(VARIANTS), metadata={"help": "variants to compare"})
    workers: int = field(default=2, metadata={"help": "number of single-threaded processes"})


@lru_cache(maxsize=1)
def _task(name: str, data_dir: Path | None) -> data.MiniTask:
    return data.load(name, data_dir)


def build(run: MiniRun, task: data.MiniTask, recipe: Mapping[str, Any]) -> torch.nn.Module:
    """Build the initial model of a run: seeded, and with prompts from the training images if the variant says so."""
    variant = VARIANTS[run.variant]
    torch.manual_seed(run.seed)
    prompts = PromptArguments(
        num_virtual_tokens=recipe["num_virtual_tokens"],
        insert_at=variant.insert_at,
        gate_init=recipe["gate_init"],
        pooling=recipe["pooling"],
    )
    backbone = BACKBONES[run.backbone]
    model = build_model(str(backbone), variant.method, prompts, task.class_names)
    if variant.start is not None:
        initialize_prompts(model, task.parts["train"][0].split(50), method=variant.start, seed=run.seed)
    return model


_cached_tokens: dict[tuple[str, str, int], dict[str, data.Part]] = {}  # the most recent ones of this process


def start_at_block(
    model: torch.nn.Module, first: int, run: MiniRun, parts: Mapping[str, data.Part]
) -> Mapping[str, data.Part]:
    """Replace the pixels by the tokens that reach block `first`, and make the model start there.

    The blocks below are not trained, so runs of the same backbone, task and block share these tokens.
    """
    if first == 0:
        return parts
    start, name = StartAtBlock(model, first), (run.backbone, run.task, first)
    if name not in _cached_tokens:
        _cached_tokens.clear()
        model.eval()
        with torch.no_grad():
            _cached_tokens[name] = {
                part: (torch.cat([t for t, _ in prefix_tokens(model, start, TensorDataset(*data), 100)]), data[1])
                for part, data in parts.items()
            }
    start.open()
    return _cached_tokens[name]


@torch.no_grad()
def accuracy(model: torch.nn.Module, part: data.Part) -> float:
    """Return the share of images classified correctly."""
    model.eval()
    hits = [(model(x).logits.argmax(-1) == y).float() for x, y in zip(*(t.split(100) for t in part), strict=True)]
    return round(float(torch.cat(hits).mean()), 5)


def execute(run: MiniRun, data_dir: Path | None, recipe: Mapping[str, Any] = RECIPE) -> dict[str, Any]:
    """Train one model and return its results."""
    begin = time.process_time()
    task = _task(run.task, data_dir)
    model = build(run, task, recipe)
    variant = VARIANTS[run.variant]
    depth = len(find_vision_transformer(model).blocks)
    parts = start_at_block(model, depth if variant.method == "linear" else variant.insert_at, run, task.parts)
    pixels, classes = parts["train"]
    own = {} if variant.method == "linear" else {"head": {"lr": recipe["head_rate"]}}
    groups = parameter_groups(model, run.learning_rate, 0.0, own)
    optimizer = torch.optim.Adam(groups)
    steps = -(-len(classes) // recipe["batch_size"])
    schedule = get_cosine_schedule_with_warmup(optimizer, recipe["warmup_epochs"] * steps, recipe["epochs"] * steps)
    losses, curve = [], []
    draw = torch.Generator().manual_seed(run.seed)
    for epoch in range(1, recipe["epochs"] + 1):
        model.train()
        total = 0.0
        for batch in torch.randperm(len(classes), generator=draw).split(recipe["batch_size"]):
            loss = F.cross_entropy(model(pixels[batch]).logits, classes[batch])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            total += float(loss.detach()) * len(batch) / len(classes)
        losses.append(round(total, 4))
        if run.variant in CURVES and epoch < recipe["epochs"]:
            curve.append([epoch, accuracy(model, parts["val"])])
    last = accuracy(model, parts["val"])
    return {
        "val_accuracy": last,
        "test_accuracy": accuracy(model, parts["test"]),
        "curve": [*curve, [recipe["epochs"], last]],
        "losses": losses,
        **{name: [round(value, 5) for value in values] for name, values in read_out(model).items()},
        "trained_parameters": sum(p.numel() for group in groups for p in group["params"]),
        "cpu_seconds": round(time.process_time() - begin, 1),
    }


def results_of(
    runs: Sequence[MiniRun], data_dir: Path | None, workers: int
) -> Iterator[tuple[MiniRun, dict[str, Any]]]:
    """Yield the results of the runs as they finish; with `workers=1`, run them in this process."""
    if workers == 1:
        torch.set_num_threads(1)
        for run in runs:
            yield run, execute(run, data_dir)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
        futures = {pool.submit(execute, run, data_dir): run for run in runs}
        try:
            for done in as_completed(futures):
                yield futures[done], done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def run_all(folder: Path, data_dir: Path | None, runs: Sequence[MiniRun], workers: int) -> None:
    """Execute these runs and write their records as they finish."""
    bar = tqdm(total=len(runs), desc="runs")
    for run, results in results_of(runs, data_dir, workers):
        records.append(folder, run, RECIPE, results)
        bar.set_postfix_str(f"{run.backbone} {run.task} {run.variant}: {results['test_accuracy']:.3f}")
        bar.update()
    bar.close()


def check_names(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    """Check names from the command line.

    Raises:
        GatedPromptError: a name is unknown; the message lists the known ones.
    """
    unknown = [name for name in given if name not in known]
    if unknown:
        raise GatedPromptError(f"unknown --{what} {', '.join(unknown)}; known: {', '.join(known)}")


def main(argv: list[str] | None = None) -> None:
    """Run with these arguments; None: the command line's."""
    (args,) = CommandLine([Arguments], __doc__).parse(argv)
    quiet_loading()
    data_dir = None if args.data_dir is None else Path(args.data_dir)
    tasks = args.tasks or list(data.FREE if data_dir is None else data.TASKS)
    check_names("backbones", args.backbones, list(BACKBONES))
    check_names("tasks", tasks, list(data.TASKS))
    check_names("variants", args.variants, list(VARIANTS))
    folder = Path(args.output_dir)
    # Two rounds: the learning rates first, then the other seeds with the chosen rates.
    while runs := missing_runs(args.backbones, tasks, args.variants, records.read(folder, RECIPE)):
        run_all(folder, data_dir, runs, args.workers)
