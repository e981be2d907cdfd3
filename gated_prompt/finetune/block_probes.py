# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Linear probes of one block after the other, and the block whose probe is best on validation images."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..starts.linear_probe import PROBLEMS, STRENGTHS, fit_path


def best_block(
    train: Sequence[Tensor], train_labels: Sequence[int], held: Sequence[Tensor], held_labels: Sequence[int]
) -> tuple[int, float]:
    """The block whose probe has the best validation accuracy, and the L2 penalty of that probe.

    `train` and `held`: features (N, F) of each block. Of equals the first block and the stronger penalty win.
    """
    labels, held_targets = torch.tensor(train_labels), torch.tensor(held_labels)
    found = []
    for block, (x, x_held) in enumerate(zip(train, held, strict=True)):
        fits = fit_path(x, labels, int(labels.max()) + 1, PROBLEMS[0])
        for l2, (weight, bias) in zip(STRENGTHS, fits, strict=True):
            correct = (x_held @ weight[0].T + bias[0]).argmax(1) == held_targets
            found.append((float(correct.double().mean()), -block, l2))
    _, negative, l2 = max(found)
    return -negative, l2
