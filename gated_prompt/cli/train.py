# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""From a folder of images to an answer, a file and a report.

    accelerate launch -m gated_prompt train --train_dir photos --backbone facebook/dinov2-small

`photos` has a subfolder for each class; `--train_file` takes a CSV or JSONL file, `--dataset` a data set of the Hub.
The script looks at the frozen backbone first: nearest neighbours and a linear probe on every block. Then it trains
prompts (or whatever `--methods` names) on the block with the best probe. The head starts as the probe, learning
rates are found by a race, and the best epoch is kept. It leaves in `--output_dir`:

    report.html    everything that was found, in one file to look at
    results.json   the same for programs
    adapter/       what was trained, with a model card; model/ for methods that train the model itself
    probe/         the linear probe

and says in one sentence which of the two to use; `predict` takes either. The same command resumes where it was
stopped, and runs on one CPU, one GPU or several (`accelerate config`), also with `--mixed_precision bf16`.
"""

import json
from dataclasses import asdict
from typing import Any

from torch.utils.data import DataLoader

from ..command_line import mistakes_in_one_line
from ..finetune import figures as pictures
from ..finetune.arguments import parse
from ..finetune.backbone import Backbone
from ..finetune.class_weights import balanced_weights
from ..finetune.experiment import Bench, score
from ..finetune.export import leave_probe, leave_run, refuse_other_settings
from ..finetune.fit import batches_per_epoch
from ..finetune.metrics import main_measure
from ..finetune.mistakes import worst_mistakes
from ..finetune.model_selection import choose
from ..finetune.pixels import Pixels, preparation
from ..finetune.report import write_report
from ..finetune.reporting import write_json
from ..finetune.results import assemble, test_result
from ..finetune.runs import Run, run_seeds
from ..finetune.sources import read_parts
from ..predictor import Predictor, read_predictor
from ..sharing.backbone import check_backbone, check_code
from ..sharing.classifier import load_trained
from ..training.checkpoints import prepare_output_dir
from ..training.loop import start
from ..training.quiet import quiet_loading


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run with these arguments (None: those of the command line) and return the content of results.json."""
    data_args, args, prompts = parse(argv, __doc__)
    quiet_loading()
    output = prepare_output_dir(args.output_dir)
    accelerator = start(args.seeds[0], None, output)
    main_process = accelerator.is_main_process

    # Before thousands of images are decoded: can the backbone be loaded?
    check_backbone(args.backbone)
    check_code(args.backbone, args.trust_remote_code)
    prepared = preparation(args.backbone, data_args.image_size)

    # The images.
    parts = read_parts(data_args, main_process)
    train, validation = parts.train, parts.validation
    measure = main_measure(train.problem, args.measure, len(train.names))
    class_weights = balanced_weights(train) if args.class_weights == "balanced" else None
    settings = {**asdict(data_args), **asdict(args), **vars(prompts)}
    stored = output / "settings.json"
    if stored.is_file():
        refuse_other_settings(json.loads(stored.read_text()), {**settings, "pictures": parts.keys}, output)

    # The frozen backbone, block by block.
    backbone = Backbone(args, Predictor(list(train.names), prepared, train.problem, args.backbone), accelerator)
    accelerator.wait_for_everyone()
    if main_process:  # only now: the folder stays free where a backbone's name was mistyped
        write_json(stored, {**settings, "pictures": parts.keys})
    blocks = backbone.study(parts, measure, class_weights, output / "probes.safetensors")
    read = backbone.read_block(blocks, args.read_block)
    for one in blocks:
        mark = " <- best block, read from here on" if one is read else ""
        accelerator.print(
            f"block {one.block:2d}: nearest neighbours {measure.text(one.neighbours)}, linear probe "
            f"{measure.text(one.probe_value)}{mark}"
        )

    # Training: the head starts as a probe, the race finds the rates.
    bench = Bench(
        args=args,
        prompts=prompts,
        parts=parts,
        predictor=backbone.predictor,
        read=read.block,
        blocks=len(blocks),
        measure=measure,
        l2=read.probe.l2,
        class_weights=class_weights,
    )
    batches = args.num_train_epochs * batches_per_epoch(bench, accelerator.num_processes)
    runs: list[Run] = []
    for method in backbone.methods:
        for done in run_seeds(bench, method, batches, output / "runs"):
            runs.append(done)
            value = measure(done.scores, validation.targets)
            accelerator.print(f"{method}, seed {done.record['seed']}: {measure.text(value)}")

    # What to use, and its test score: these images were used for no choice.
    choice = choose(read.probe, runs, validation.targets, measure)
    best = choice.run or max(runs, key=lambda one: one.gain, default=None)
    model = None
    if best is not None:
        model = load_trained(best.kept, read_predictor(best.kept), args.trust_remote_code).to(accelerator.device)
    test_scores = None
    if parts.test is not None and (choice.run is None or model is None):
        features = backbone.features(parts.test, parts.keys["test"])[read.block]
        test_scores = features @ read.probe.weight.T + read.probe.bias
    elif parts.test is not None:
        loader = accelerator.prepare(DataLoader(Pixels(parts.test, bench.predictor), args.per_device_eval_batch_size))
        test_scores = score(accelerator.prepare_model(model, evaluation_mode=True), loader, accelerator)

    results: dict[str, Any] = {}
    if main_process:
        results = assemble(parts, bench, blocks, read, runs, choice, settings)
        if parts.test is not None and test_scores is not None:
            results["test"] = test_result(parts.test, test_scores, measure)
        leave_probe(output / "probe", read.probe, bench)
        trained = leave_run(output, best, model, bench) if best is not None and model is not None else None
        results["use"] = "probe" if choice.run is None or trained is None else trained.name
        scores = read.probe.scores if choice.run is None else choice.run.scores
        write_report(
            output / "report.html",
            results,
            pictures.draw_all(results, model),
            worst_mistakes(validation, scores),
            output / results["use"],
        )
        write_json(output / "results.json", results)
        print(f"{choice.sentence}\nReport: {output / 'report.html'}; what to use: {output / results['use']}")
    accelerator.end_training()
    return results


if __name__ == "__main__":
    with mistakes_in_one_line():
        main()
