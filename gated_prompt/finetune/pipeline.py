# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""From images to an answer, a file and a report: under `gated-prompt train` and `probe`, and `finetune.train`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..predictor import Predictor, read_predictor
from ..sharing.backbone import check_backbone, check_code, preparation, quiet_loading
from ..sharing.classifier import load_trained
from ..training.checkpoints import prepare_output_dir
from ..training.loop import make_accelerator
from . import figures
from .arguments import DataArguments, RunArguments
from .audit import SUSPECT, TWICE, label_suspects, near_duplicates, write_rows
from .backbone import Backbone
from .division import Division
from .export import SETTINGS, export_run, refuse_other_settings, write_probe
from .features import reads_of
from .figures import worst_mistakes, write_report
from .image_experiment import ImageExperiment, score
from .image_set import SINGLE_LABEL, ImageSet
from .metrics import balanced_weights, main_measure
from .probing import Study, image_features, place, study_backbone
from .report import write_json
from .results import Choice, assemble, choose, test_result
from .runs import Run, refit, run_seeds
from .sources import read_parts


@dataclass(frozen=True)
class Stage:
    """The frozen backbone, probed: what everything after it needs.

    `features`: (N, F) of all labelled images, what the chosen probe reads of them.
    """

    experiment: ImageExperiment
    known: Study
    features: Tensor
    settings: dict[str, Any]
    output: Path

    @property
    def accelerator(self) -> Accelerator:
        return self.experiment.accelerator


def probe(data_args: DataArguments, args: RunArguments, prompts: Any, model: nn.Module | None = None) -> Stage:
    """Read the images, probe the frozen backbone, and leave the probe and a first report in the output folder.

    Raises:
        GatedPromptError: images, backbone or output folder cannot be used.
    """
    quiet_loading()
    output = prepare_output_dir(args.output_dir)
    accelerator = make_accelerator(
        args.seeds[0], args.report_to, output, accumulation=args.gradient_accumulation_steps
    )
    main_process = accelerator.is_main_process
    if model is None:  # fails early, before thousands of images are decoded
        check_backbone(args.backbone)
        check_code(args.backbone, args.trust_remote_code)
    prepared = preparation(args.backbone, data_args.image_size)
    parts = read_parts(data_args, main_process)
    measure = main_measure(parts.train.problem, args.measure, len(parts.train.names))
    class_weights = balanced_weights(parts.train) if args.class_weights == "balanced" else None
    # with few shots, the validation part stands for images to come
    division = Division.of(
        parts, data_args.validation_share, data_args.split_seed, args.refit and data_args.shots is None
    )
    settings = {**asdict(data_args), **asdict(args), **vars(prompts)}
    recorded = {**settings, "pictures": parts.keys}
    refuse_other_settings(output, recorded)
    backbone = Backbone(args.backbone, args.trust_remote_code, model)
    reads = reads_of(backbone.num_prefix_tokens)
    predictor = Predictor(list(parts.train.names), prepared, parts.train.problem, args.backbone, reads=reads)
    accelerator.wait_for_everyone()
    if main_process:  # not earlier, so that a mistyped backbone leaves no folder behind
        write_json(output / SETTINGS, recorded)
    file = output / "probes.safetensors"
    known = study_backbone(backbone, predictor, parts, division, measure, class_weights, args, file, accelerator)
    experiment = ImageExperiment(
        args=args,
        prompts=prompts,
        accelerator=accelerator,
        backbone=backbone,
        predictor=predictor,
        blocks=known.chosen.blocks,
        parts=parts,
        division=division,
        measure=measure,
        l2=known.chosen.l2,
        class_weights=class_weights,
    )
    seen = [_read(experiment, parts.train, "train"), _read(experiment, parts.validation, "validation")]
    stage = Stage(experiment, known, torch.cat(seen), settings, output)
    if main_process:
        write_probe(output / "probe", known, stage.features, experiment)
        if not (output / "results.json").is_file():
            _write(stage, [], _only_the_probe(stage), None, None, complete=False)
    accelerator.wait_for_everyone()
    return stage


def train(data_args: DataArguments, args: RunArguments, prompts: Any) -> dict[str, Any]:
    """`probe`, then every method, then what to use and its test score. Return the content of results.json.

    Raises:
        GatedPromptError: as for `probe`.
    """
    stage = probe(data_args, args, prompts)
    accelerator, experiment, known = stage.accelerator, stage.experiment, stage.known
    parts, measure = experiment.parts, experiment.measure
    for line in table(stage):
        accelerator.print(line)
    accelerator.print(f"first report, before training: {stage.output / 'report.html'}")
    runs: list[Run] = []
    for method in args.methods or [experiment.backbone.best_method]:
        for done in run_seeds(experiment, method, stage.output / "runs"):
            runs.append(done)
            value = measure(done.scores, parts.validation.targets)
            accelerator.print(f"{method}, seed {done.record['seed']}: {measure.text(value)}")
    held = known.chosen.scores[experiment.division.validation]
    choice = choose(experiment.blocks, held, runs, parts.validation.targets, measure)
    best = choice.run or max(runs, key=lambda one: one.score_to_maximize, default=None)
    model = kept = None
    if best is not None:
        kept = refit(experiment, best) if experiment.refits and choice.run is not None else best.kept
        model = load_trained(kept, read_predictor(kept), base=experiment.twin(best.record["method"]))
        model = model.to(accelerator.device)
    # no choice has used these images
    tested = None if parts.test is None else _test(stage, parts.test, model if choice.run is not None else None)
    results: dict[str, Any] = {}
    if accelerator.is_main_process:
        left = None if best is None or kept is None or model is None else (best, kept, model)
        results = _write(stage, runs, choice, left, tested, complete=True)
        report, use = stage.output / "report.html", stage.output / results["use"]
        print(f"{results['sentence']}\nReport: {report}\nUse: {use}")
    accelerator.end_training()
    return results


def results_of(stage: Stage) -> dict[str, Any]:
    """What is known before anything is trained, as in results.json."""
    return assemble(stage.experiment, stage.known, [], _only_the_probe(stage), stage.settings)


def table(stage: Stage) -> list[str]:
    """A line for each block, and one for each set of blocks."""
    known, measure = stage.known, stage.experiment.measure
    near = [f"nearest neighbours {measure.text(value)}, " for value in known.neighbours]
    lines = []
    for index, one in enumerate(known.candidates):
        mark = " <- read from here on" if one is known.chosen else ""
        lines.append(
            f"{place(one.blocks)}: {near[index] if index < len(near) else ''}linear probe "
            f"{measure.text(one.value)}{mark}"
        )
    return lines


def _only_the_probe(stage: Stage) -> Choice:
    experiment = stage.experiment
    held = stage.known.chosen.scores[experiment.division.validation]
    return choose(experiment.blocks, held, [], experiment.parts.validation.targets, experiment.measure)


def _read(experiment: ImageExperiment, data: ImageSet, part: str) -> Tensor:
    """Return what the probe reads of the images of a part, (N, F). All processes must call this."""
    features = image_features(
        experiment.backbone,
        experiment.predictor,
        data,
        experiment.parts.keys[part],
        experiment.args,
        experiment.accelerator,
    )
    return torch.cat([features[block] for block in experiment.blocks], 1)


@dataclass(frozen=True)
class Tested:
    """The test part: what the probe reads of it (M, F), and the scores (M, K) of what is used."""

    data: ImageSet
    features: Tensor
    scores: Tensor


def _test(stage: Stage, data: ImageSet, model: nn.Module | None) -> Tested:
    """Score the test part by the model, or by the probe (None)."""
    experiment = stage.experiment
    features, accelerator = _read(experiment, data, "test"), experiment.accelerator
    if model is None:
        return Tested(data, features, features @ stage.known.weight.T + stage.known.bias)
    loader = experiment.loader(experiment.pixels(data))
    return Tested(data, features, score(accelerator.prepare_model(model, evaluation_mode=True), loader, accelerator))


def _audit(stage: Stage, tested: Tested | None) -> dict[str, Any]:
    """Labels that look wrong and test images that are almost labelled ones, also written to CSV files."""
    division, output = stage.experiment.division, stage.output
    images, scores, found = division.images, stage.known.chosen.scores, {}
    if images.problem == SINGLE_LABEL:
        found["label_suspects"] = label_suspects(scores, division.held.tolist(), images, stage.features)
        write_rows(output / "label_suspects.csv", found["label_suspects"], SUSPECT)
    if tested is not None:
        found["near_duplicates"] = near_duplicates(images, stage.features, tested.data, tested.features)
        write_rows(output / "near_duplicates.csv", found["near_duplicates"], TWICE)
    return found


def _write(
    stage: Stage,
    runs: list[Run],
    choice: Choice,
    trained: tuple[Run, Path, nn.Module] | None,
    tested: Tested | None,
    complete: bool,
) -> dict[str, Any]:
    """Write results.json, the report and, with the best run, what it `trained`."""
    experiment, output = stage.experiment, stage.output
    results = assemble(experiment, stage.known, runs, choice, stage.settings)
    results["complete"] = complete
    results |= _audit(stage, tested)
    if tested is not None:
        results["test"] = test_result(tested.data, tested.scores, experiment.measure)
    folder = export_run(output, *trained, experiment) if trained is not None else None
    results["use"] = "probe" if choice.run is None or folder is None else folder.name
    run = choice.run
    write_report(
        output / "report.html",
        results,
        figures.draw_all(results, None if trained is None else trained[2]),
        _pictures(stage, run),
        output / results["use"],
    )
    write_json(output / "results.json", results)
    return results


def _pictures(stage: Stage, run: Run | None) -> figures.Pictures:
    division, probe_scores = stage.experiment.division, stage.known.chosen.scores
    out_of_fold = division.is_cross_validation
    if run is None:
        shown, suspects = worst_mistakes(division.scored, probe_scores), []
    else:
        shown = worst_mistakes(stage.experiment.parts.validation, run.scores)
        suspects = worst_mistakes(division.scored, probe_scores) if out_of_fold else []
    return figures.Pictures(figures.samples(division.images), shown, suspects, out_of_fold and run is None)
