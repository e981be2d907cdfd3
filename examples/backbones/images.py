# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Small images, kept in memory as bytes, and their augmentation."""

import numpy as np
import torch
import torch.nn.functional as F
from datasets import load_dataset
from tqdm import tqdm

from gated_prompt.images import to_rgb
from gated_prompt.transforms import IMAGENET_MEAN, IMAGENET_STD


def load_images(dataset: str, image_size: int) -> torch.Tensor:
    """Load all training images as one uint8 tensor of shape (N, 3, image_size, image_size)."""
    split = load_dataset(dataset, split="train")
    column = "image" if "image" in split.column_names else "img"
    images = torch.empty(len(split), 3, image_size, image_size, dtype=torch.uint8)
    for i, image in enumerate(tqdm(split[column], desc="decode", leave=False)):
        pixels = np.array(to_rgb(image).resize((image_size, image_size)))
        images[i] = torch.from_numpy(pixels).permute(2, 0, 1)
    return images


def augment(images: torch.Tensor, min_crop: float) -> torch.Tensor:
    """Crop, resize and flip a uint8 batch (B, 3, H, W) at random, then normalise it (ImageNet) to float."""
    n = len(images)
    side = torch.empty(n).uniform_(min_crop, 1).sqrt()
    flip = torch.randint(0, 2, (n,)) * 2.0 - 1.0
    shift_x, shift_y = (torch.empty(2, n).uniform_(-1, 1)) * (1 - side)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = side * flip, shift_x
    theta[:, 1, 1], theta[:, 1, 2] = side, shift_y
    grid = F.affine_grid(theta.to(images.device), list(images.shape), align_corners=False)
    pixels = F.grid_sample(images.float() / 255, grid, padding_mode="reflection", align_corners=False)
    mean, std = (torch.tensor(v, device=pixels.device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels - mean) / std
