# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Linear probes of the frozen backbone: which block the head reads, and an accuracy to compare with."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from gated_prompt import GatedPromptError, find_vision_transformer
from gated_prompt.finetune.features import block_features
from gated_prompt.finetune.recipe import PROMPT_METHODS, check_read_block, entry_block
from gated_prompt.heads import read_tokens
from gated_prompt.sharing.backbone import load_backbone
from gated_prompt.starts.linear_probe import PROBLEMS, STRENGTHS, fit_path
from gated_prompt.transforms import TransformedImages

Parts = Callable[[], tuple[TransformedImages, TransformedImages]]


def settle_blocks(args: Any, prompts: Any, parts: Parts | None, accelerator: Accelerator) -> float:
    """Fill in where prompts leave (`read_from`) and, where it is None, where they enter (`insert_at`).

    `parts` loads the images that probes are fitted to and the validation images that choose among them. None: this
    script has no validation images.

    Returns:
        The strength of the L2 penalty of the best probe, with which a head should start; 1 if none was fitted.

    Raises:
        GatedPromptError: the method has no prompts, there are no validation images, or both `--read_block` and
            `--read_from` are given.
    """
    if args.read_block == "last" and prompts.insert_at is not None:
        return 1.0
    if args.method not in PROMPT_METHODS:
        raise GatedPromptError(f"--read_block {args.read_block} is for prompts, and --method {args.method} has none")
    if args.read_block != "last" and prompts.read_from is not None:
        raise GatedPromptError(
            f"--read_block {args.read_block} and --read_from {prompts.read_from}: leave one of them out"
        )
    backbone = load_backbone(args.backbone)
    blocks, l2 = len(find_vision_transformer(backbone).blocks), 1.0
    check_read_block(args.read_block, blocks)
    if args.read_block == "best":
        if parts is None:
            raise GatedPromptError(
                "--read_block best needs validation images, but there are none here. Give a number."
            )
        data = parts()
        size, workers = args.per_device_eval_batch_size, args.dataloader_num_workers
        train, held = (block_features(backbone, part, accelerator, size, workers) for part in data)
        found: list[Any] = [None]
        if accelerator.is_main_process:
            found = [best_block(train, data[0].data.labels, held, data[1].data.labels)]
        broadcast_object_list(found)
        read, l2 = found[0]
        set_seed(args.seed)  # the passes have drawn from the generators
        accelerator.print(f"block {read} has the best linear probe on validation, so the head reads it")
    elif args.read_block == "last":
        read = blocks - 1 if prompts.read_from is None else prompts.read_from
    else:
        read = int(args.read_block)
    prompts.read_from = None if read == blocks - 1 else read
    if prompts.insert_at is None:
        prompts.insert_at = entry_block(args.method, read)
    return l2


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


def probe_accuracy(backbone: nn.Module, train: Dataset[Any], scored: Dataset[Any], num_classes: int) -> float:
    """Accuracy on `scored` of a linear probe of the mean patch token after the final norm, with a penalty of 1."""
    x, labels = _patch_features(backbone, train)
    ((weight, bias),) = fit_path(x, labels, num_classes, PROBLEMS[0], [1.0])
    x, labels = _patch_features(backbone, scored)
    return float(((x @ weight[0].T + bias[0]).argmax(1) == labels).double().mean())


@torch.inference_mode()
def _patch_features(backbone: nn.Module, data: Dataset[Any]) -> tuple[Tensor, Tensor]:
    """Features (N, D) and labels (N,)."""
    prefix, device = find_vision_transformer(backbone).num_prefix_tokens, next(backbone.parameters()).device
    found = []
    for pixels, labels in tqdm(DataLoader(data, batch_size=256), desc="features for the probe", leave=False):
        tokens = backbone(pixels.to(device)).last_hidden_state
        found.append((read_tokens(tokens, prefix, "mean").float().cpu(), labels))
    features, labels = zip(*found, strict=True)
    return torch.cat(features), torch.cat(labels)
