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

import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...segmentation.predictor import read_mask_predictor
from ...sharing.backbone import check_backbone, check_code, quiet_loading
from ...sharing.classifier import HEAD, load_trained
from ...training.checkpoints import prepare_output_dir
from ...training.loop import make_accelerator
from ..backbone import Backbone
from ..export import SETTINGS, refuse_other_settings, save_tensors
from ..probing import place
from ..report import write_json
from ..results import Choice
from ..runs import Run, refit, run_seeds
from .arguments import parse
from .experiment import MaskExperiment
from .linear_map import rare_class_weights
from .probing import Frozen, mask_predictor, study_backbone
from .report import image_rows, shown_images, write_report
from .results import assemble, choose, measured
from .sources import read_mask_parts


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run with these arguments (None means those of the command line) and return the content of results.json."""
    data_args, args, prompts = parse(argv, __doc__)
    quiet_loading()
    output = prepare_output_dir(args.output_dir)
    accelerator = make_accelerator(
        args.seeds[0], args.report_to, output, accumulation=args.gradient_accumulation_steps
    )
    main_process = accelerator.is_main_process
    check_backbone(args.backbone)  # before thousands of images are decoded
    check_code(args.backbone, args.trust_remote_code)
    parts = read_mask_parts(data_args, main_process)
    settings = {**asdict(data_args), **asdict(args), **vars(prompts)}
    recorded = {**settings, "pictures": parts.keys}
    refuse_other_settings(output, recorded)
    class_weights = rare_class_weights(parts.train.counts) if args.class_weights == "balanced" else None
    backbone = Backbone(args.backbone, args.trust_remote_code)
    predictor = mask_predictor(data_args, args, backbone, parts.labelled)
    accelerator.wait_for_everyone()
    if main_process:
        write_json(output / SETTINGS, recorded)

    # The frozen backbone, and a report of it before anything is trained.
    file = output / "frozen.safetensors"
    frozen = study_backbone(backbone, predictor, parts, class_weights, args, file, accelerator)
    for one in frozen.found:
        mark = " <- read from here on" if one is frozen.best else ""
        accelerator.print(f"{place(one.blocks)}: mIoU {100 * one.mean_iou:.1f} %{mark}")
    experiment = MaskExperiment(
        args=args,
        prompts=prompts,
        accelerator=accelerator,
        backbone=backbone,
        predictor=replace(predictor, blocks=list(frozen.all.blocks)),
        blocks=frozen.all.blocks,
        parts=parts,
        choice=frozen.choice,
        final=frozen.all,
        class_weights=class_weights,
    )
    write_frozen(experiment, output / "frozen")
    frozen_scores = experiment.confusions(experiment.frozen(frozen.choice), parts.validation)
    stage = _Stage(experiment, frozen, frozen_scores, settings, output)
    if args.methods:
        stage.report(choose(experiment.blocks, frozen_scores, [], pending=True), [])

    # Training, below a head that starts as the map.
    runs: list[Run] = []
    for method in args.methods:
        for done in run_seeds(experiment, method, output / "runs"):
            runs.append(done)
            accelerator.print(f"{method}, seed {done.record['seed']}: mIoU {100 * done.score_to_maximize:.1f} %")
    results = stage.report(choose(experiment.blocks, frozen_scores, runs), runs, last=True)
    accelerator.print(f"{results.get('sentence', '')}\nReport: {output / 'report.html'}")
    accelerator.end_training()
    return results


def write_frozen(experiment: MaskExperiment, folder: Path) -> None:
    """Write the linear map as a head."""
    kept = experiment.final if experiment.refits else experiment.choice
    if experiment.accelerator.is_main_process:
        save_tensors(dict(zip(HEAD, (kept.weight, kept.bias), strict=True)), folder)
        experiment.predictor_of(None).write(folder)
    experiment.accelerator.wait_for_everyone()


@dataclass(frozen=True)
class _Stage:
    """What the reports before and after training share. `frozen_scores`: confusion matrices on validation."""

    experiment: MaskExperiment
    frozen: Frozen
    frozen_scores: Tensor
    settings: dict[str, Any]
    output: Path

    def report(self, choice: Choice, runs: list[Run], last: bool = False) -> dict[str, Any]:
        """Write report and results, after training (`last`) with the score of the test part and what was trained."""
        experiment, parts = self.experiment, self.experiment.parts
        shown = self.frozen_scores if choice.run is None else choice.run.scores
        worst, even = shown_images(shown)
        data = parts.validation.take([*worst, *even])
        model = experiment.frozen(self.frozen.choice) if choice.run is None else self._load(choice.run.kept, choice)
        drawn: dict[int, Tensor] = {}
        confusions = experiment.confusions(model, data, drawn.__setitem__)
        use, test = self.output / "frozen", None
        if last:
            use = self._leave(choice)
            test = self._test(use, choice)
        results: dict[str, Any] = {}
        if experiment.accelerator.is_main_process:
            for index in range(len(data)):
                if index not in drawn:  # another process predicted it
                    drawn[index] = torch.from_numpy(experiment.predictor.label_map(model, data.image(index)))
            results = assemble(experiment, self.frozen, self.frozen_scores, runs, choice, self.settings)
            results |= {"test": test, "use": use.name}
            colours = experiment.predictor.palette()
            rows = image_rows(data, confusions, drawn, range(len(data)), colours)
            page, cut = self.output / "report.html", len(worst)
            write_report(page, results, colours, rows[:cut], rows[cut:], use, last)
            if last:
                write_json(self.output / "results.json", results)
        return results

    def _leave(self, choice: Choice) -> Path:
        """The folder to use: that of the best run, trained again on all labelled images, or the frozen backbone's."""
        run, experiment = choice.run, self.experiment
        if run is None:
            return self.output / "frozen"
        kept = refit(experiment, run) if experiment.refits else run.kept
        target = self.output / kept.name
        if experiment.accelerator.is_main_process:
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(kept, target)
        experiment.accelerator.wait_for_everyone()
        return target

    def _test(self, use: Path, choice: Choice) -> dict[str, Any] | None:
        """The scores of the test part with what is used and, where that was trained, with the frozen backbone."""
        experiment, test = self.experiment, self.experiment.parts.test
        if test is None:
            return None
        frozen = experiment.final if experiment.refits else experiment.choice
        scores = measured(experiment.confusions(experiment.frozen(frozen), test))
        if choice.run is None:
            return {**scores, "frozen": None}
        trained = measured(experiment.confusions(self._load(use, choice), test))
        return {**trained, "frozen": scores["text"]}

    def _load(self, folder: Path, choice: Choice) -> nn.Module:
        """Return what a method left, on a copy of the backbone."""
        base = self.experiment.twin(choice.method)
        return load_trained(folder, read_mask_predictor(folder), base=base).to(self.experiment.accelerator.device)
