# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What a frozen backbone can do with your images: nearest neighbours and linear probes of every block.

    gated-prompt probe --train_dir photos --backbone facebook/dinov2-small

It takes the options of `train` and does its first part: a report, and the probe of the best blocks in `probe/`, which
`predict` takes. `train` with the same options continues from there.
"""

from ..finetune.arguments import parse


def main(argv: list[str] | None = None) -> None:
    """Run with these arguments. None means those of the command line."""
    arguments = parse(argv, __doc__)
    from ..finetune import pipeline

    stage = pipeline.probe(*arguments)
    for line in pipeline.table(stage):
        stage.accelerator.print(line)
    stage.accelerator.print(f"Report: {stage.output / 'report.html'}\nProbe: {stage.output / 'probe'}")
    stage.accelerator.end_training()
