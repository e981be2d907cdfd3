# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What a head would read of every block of a frozen backbone, computed once and kept on disk in half precision.

The file is a NumPy array (blocks, patches of all images, D), of which only what is asked for is read into memory.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from ...segmentation.predictor import MaskPredictor
from ...segmentation.sliding_window import scaled_size
from ...segmenter import TokenSegmenter
from .mask_set import MaskSet

MOST_BYTES = 8 * 2**30  # of one file. Beyond it the study looks at fewer images


class TokenFeatures:
    """Features by block, of images whose patches form `grids` (N, 2)."""

    def __init__(self, file: Path, grids: Tensor) -> None:
        self.grids = grids
        self.offsets = torch.cat((torch.zeros(1, dtype=torch.int64), grids.prod(1).cumsum(0)))
        self._stored = np.load(file, mmap_mode="r")

    def rows(self, blocks: Sequence[int], places: Tensor) -> Tensor:
        """Features float32 (M, blocks x D) of patches, by their ascending places among those of all images."""
        where = places.numpy()
        return torch.cat([torch.from_numpy(self._stored[block][where]).float() for block in blocks], 1)

    def image(self, blocks: Sequence[int], index: int) -> Tensor:
        """Features float32 (h, w, blocks x D) of one image."""
        first, last = int(self.offsets[index]), int(self.offsets[index + 1])
        parts = [torch.from_numpy(self._stored[block, first:last].copy()).float() for block in blocks]
        return torch.cat(parts, 1).unflatten(0, (int(self.grids[index][0]), int(self.grids[index][1])))


def grids_of(sizes: Tensor, short_side: int, patch: int) -> Tensor:
    """Patches (N, 2) of images of these heights and widths (N, 2) after scaling."""
    scaled = [scaled_size((height, width), short_side, patch) for height, width in sizes.tolist()]
    return torch.tensor(scaled, dtype=torch.int64).reshape(-1, 2) // patch


def kept_tokens(
    reader: TokenSegmenter, data: MaskSet, predictor: MaskPredictor, key: str, folder: Path, accelerator: Accelerator
) -> TokenFeatures:
    """The features of all images, from the file of this key if there is one. The processes of a run share the work.

    `reader` reads every block. `key` has to name everything that the features depend on.
    """
    file = folder / f"{key}.npy"
    grids = grids_of(data.sizes, predictor.preparation["short_side"], reader.patch_size)
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        reader = reader.eval().to(accelerator.device)
        partial = file.with_suffix(".partial")
        count = int(grids.prod(1).sum())
        depth = len(reader.blocks)
        if accelerator.is_main_process:
            np.lib.format.open_memmap(partial, "w+", np.float16, (depth, count, _width(reader)))
        accelerator.wait_for_everyone()
        stored = np.load(partial, mmap_mode="r+")
        offsets = [0, *grids.prod(1).cumsum(0).tolist()]
        mine = range(accelerator.process_index, len(data), accelerator.num_processes)
        for index in tqdm(mine, "features of every block", leave=False, disable=not accelerator.is_main_process):
            tokens = read_image(reader, predictor.pixels(data.image(index), reader.patch_size).to(accelerator.device))
            stored[:, offsets[index] : offsets[index + 1]] = tokens.half().cpu().numpy()
        stored.flush()
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            os.replace(partial, file)
    accelerator.wait_for_everyone()
    return TokenFeatures(file, grids)


@torch.inference_mode()
def read_image(reader: TokenSegmenter, pixels: Tensor) -> Tensor:
    """Features (blocks, h w, D) of one image (3, H, W)."""
    tokens = reader.read(pixels[None])[0].flatten(0, 1)
    return tokens.unflatten(1, (len(reader.blocks), -1)).transpose(0, 1)


def _width(reader: TokenSegmenter) -> int:
    return int(reader.classifier.get_parameter("weight").shape[1]) // len(reader.blocks)
