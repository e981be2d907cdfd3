# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""From a folder of images and label maps to a segmentation, a file and a report.

    accelerate launch -m gated_prompt train --train_dir street --backbone facebook/dinov2-small

`street` has `images/` and `masks/` (or ADE20K's `annotations/`) side by side. `--train_file` takes COCO's JSON,
`--dataset` a data set of the Hub. First the frozen backbone: a linear map from patches to classes, on every block and
on sets of blocks, chosen on images that it did not see. Then prompts, or whatever `--methods` names, below that map.
What is better is fitted once more to all labelled images. It leaves in `--output_dir`:

    report.html    everything that was found, in one file to look at. First of the frozen backbone alone
    results.json   the same for programs
    frozen/        the linear map
    adapter/       what was trained, where that is better. model/ for methods that train the model itself

`gated-prompt predict` takes the folder. The same command resumes where it was stopped.
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ...segmentation.predictor import read_mask_predictor
from ...training.checkpoints import prepare_output_dir
from ...training.loop import make_accelerator
from ...training.quiet import quiet_loading
from ..export import refuse_other_settings, save_tensors
from ..report import write_json
from .arguments import parse
from .bench import MaskBench
from .choice import MaskChoice, choose
from .fit import MaskRun, confusions_of, kept_in, run_method
from .frozen import Frozen, make_bench, study
from .linear_map import LinearMap
from .loading import HEAD, load_segmenter
from .losses import rare_class_weights
from .page import write_page
from .pictures import image_rows, shown_images
from .results import assemble, measured
from .sources import MaskParts, read_mask_parts


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run with these arguments (None: those of the command line) and return the content of results.json."""
    data_args, args, prompts = parse(argv, __doc__)
    quiet_loading()
    output = prepare_output_dir(args.output_dir)
    accelerator = make_accelerator(args.seeds[0], None, output)
    parts = read_mask_parts(data_args, accelerator.is_main_process)
    settings = {**asdict(data_args), **asdict(args), **vars(prompts)}
    stored = output / "settings.json"
    if stored.is_file():
        refuse_other_settings(json.loads(stored.read_text()), {**settings, "pictures": parts.keys}, output)
    class_weights = rare_class_weights(parts.train.counts) if args.class_weights == "balanced" else None
    bench, reader = make_bench(data_args, args, prompts, parts, class_weights)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_json(stored, {**settings, "pictures": parts.keys})

    # The frozen backbone, and a report of it before anything is trained.
    bench, frozen = study(bench, reader, parts, output / "frozen.safetensors", accelerator)
    del reader
    work = _Work(parts, bench, frozen, settings, output, accelerator)
    for one in frozen.found:
        mark = " <- read from here on" if one is frozen.best else ""
        accelerator.print(f"blocks {', '.join(map(str, one.blocks))}: mIoU {100 * one.mean_iou:.1f} %{mark}")
    if args.methods:
        work.report(choose(bench.predictor.blocks, work.frozen_scores, [], pending=True), [])

    # Training, below a head that starts as the map.
    runs: list[MaskRun] = []
    for method in args.methods:
        for seed in args.seeds:
            folder = output / "runs" / f"{method}-seed{seed}"
            runs.append(run_method(bench, method, seed, parts.train, parts.validation, frozen.choice, folder))
            best = runs[-1].record["curve"][runs[-1].record["best_epoch"]]
            accelerator.print(f"{method}, seed {seed}: mIoU {100 * best['mean_iou']:.1f} %")
    results = work.report(choose(bench.predictor.blocks, work.frozen_scores, runs), runs, last=True)
    accelerator.print(f"{results.get('sentence', '')}\nReport: {output / 'report.html'}")
    accelerator.end_training()
    return results


class _Work:
    """What the reports before and after training share. Leaves `frozen/` in the output folder."""

    def __init__(
        self,
        parts: MaskParts,
        bench: MaskBench,
        frozen: Frozen,
        settings: dict[str, Any],
        output: Path,
        accelerator: Accelerator,
    ) -> None:
        self.parts, self.bench, self.frozen = parts, bench, frozen
        self.settings, self.output, self.accelerator = settings, output, accelerator
        final = frozen.all if bench.args.refit else frozen.choice
        if accelerator.is_main_process:
            tensors = {f"{HEAD}weight": final.weight, f"{HEAD}bias": final.bias}
            save_tensors(tensors, output / "frozen")
            bench.predictor_of(None).write(output / "frozen")
        accelerator.wait_for_everyone()
        self.frozen_scores = self._score(self._frozen_model(frozen.choice))

    def report(self, choice: MaskChoice, runs: list[MaskRun], last: bool = False) -> dict[str, Any]:
        """Write report and results, after training (`last`) with the score of the test part and what was trained."""
        parts, bench = self.parts, self.bench
        shown = self.frozen_scores if choice.run is None else choice.run.confusions
        worst, even = shown_images(shown)
        data = parts.validation.take([*worst, *even])
        model = self._frozen_model(self.frozen.choice) if choice.run is None else self._load(choice.run.kept)
        drawn: dict[int, Tensor] = {}
        confusions = confusions_of(model, data, bench.predictor, self.accelerator, drawn.__setitem__)
        use, test = self.output / "frozen", None
        if last:
            use = self._leave(choice)
            test = self._test(use)
        results: dict[str, Any] = {}
        if self.accelerator.is_main_process:
            for index in range(len(data)):
                if index not in drawn:  # another process predicted it
                    drawn[index] = torch.from_numpy(bench.predictor.label_map(model, data.image(index)))
            results = assemble(parts, bench, self.frozen, self.frozen_scores, runs, choice, self.settings)
            results |= {"test": test, "use": use.name}
            colours = bench.predictor.palette()
            rows = image_rows(data, confusions, drawn, range(len(data)), colours)
            write_page(self.output / "report.html", results, colours, rows[: len(worst)], rows[len(worst) :], use)
            if last:
                write_json(self.output / "results.json", results)
        return results

    def _leave(self, choice: MaskChoice) -> Path:
        """The folder to use: of the best run, trained again on all labelled images, or the frozen backbone's."""
        run, bench = choice.run, self.bench
        if run is None:
            return self.output / "frozen"
        method, seed = run.record["method"], run.record["seed"]
        if bench.args.refit:
            folder, epochs = self.output / "runs" / f"{method}-refit", int(run.record["best_epoch"])
            run = run_method(bench, method, seed, self.parts.labelled, None, self.frozen.all, folder, epochs)
        target = self.output / kept_in(method)
        if self.accelerator.is_main_process:
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(run.kept, target)
        self.accelerator.wait_for_everyone()
        return target

    def _test(self, use: Path) -> dict[str, Any] | None:
        """The scores of the test part with what is used and, where that was trained, with the frozen backbone."""
        if self.parts.test is None:
            return None
        found = measured(self._score(self._load(use), test=True))
        if use.name == "frozen":
            return {**found, "frozen": None}
        return {**found, "frozen": measured(self._score(self._load(self.output / "frozen"), test=True))["text"]}

    def _score(self, model: nn.Module, test: bool = False) -> Tensor:
        data = self.parts.test if test else self.parts.validation
        assert data is not None  # asked for where there is one
        return confusions_of(model, data, self.bench.predictor, self.accelerator)

    def _load(self, folder: Path) -> nn.Module:
        return load_segmenter(folder, read_mask_predictor(folder)).to(self.accelerator.device)

    def _frozen_model(self, fitted: LinearMap) -> nn.Module:
        base = self.bench.predictor_of(None).load_base()
        with torch.no_grad():
            base.classifier.weight.copy_(fitted.weight)
            base.classifier.bias.copy_(fitted.bias)
        made: nn.Module = base.to(self.accelerator.device)
        return made
