# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""From a folder of images to an answer, a file and a report.

    accelerate launch -m gated_prompt train --train_dir photos --backbone facebook/dinov2-small

`photos` has a subfolder for each class. `--train_file` takes a CSV or JSONL file, `--dataset` a data set of the Hub.
The frozen backbone comes first: nearest neighbours and linear probes of every block and of sets of blocks, chosen by
folds of all labelled images. The probe and a first report are there before training begins. Then prompts (or whatever
`--methods` names) are trained below a head on these blocks, which starts as the probe: a short search finds the
learning rates, and the best epoch is kept. What wins is fitted once more, to all labelled images. It leaves in
`--output_dir`:

    report.html    everything that was found, in one file to look at
    results.json   the same for programs
    adapter/       what was trained, with a model card. model/ for methods that train the model itself
    probe/         the linear probe

and says in one sentence which of the two to use. `predict` takes either. The same command resumes where it was
stopped, and runs on one CPU, one GPU or several (`accelerate config`), also with `--mixed_precision bf16`.
"""

from typing import Any

from ..finetune.arguments import parse


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run with these arguments (None means those of the command line) and return the content of results.json."""
    arguments = parse(argv, __doc__)
    from ..finetune import pipeline

    return pipeline.train(*arguments)
