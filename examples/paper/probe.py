# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Linear probe of a frozen backbone: a logistic regression on its mean patch token."""

from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from gated_prompt import find_vision_transformer

Features = tuple[np.ndarray, np.ndarray]


def patch_features(backbone: torch.nn.Module, data: Dataset[Any]) -> Features:
    """Mean of the patch tokens after the final norm, shape (N, D), and the labels, shape (N,)."""
    prefix = find_vision_transformer(backbone).num_prefix_tokens
    device = next(backbone.parameters()).device
    features, labels = [], []
    with torch.inference_mode():
        for pixels, classes in tqdm(DataLoader(data, batch_size=256), desc="features for the probe", leave=False):
            features.append(backbone(pixels.to(device)).last_hidden_state[:, prefix:].mean(1).float().cpu())
            labels.append(classes)
    return torch.cat(features).numpy(), torch.cat(labels).numpy()


def probe(train: Features, test: Features) -> float:
    """Test accuracy of a logistic regression on standardised features."""
    (x, y), (x_test, y_test) = train, test
    mean, std = x.mean(0), x.std(0) + 1e-6
    return float(LogisticRegression(max_iter=1000).fit((x - mean) / std, y).score((x_test - mean) / std, y_test))
