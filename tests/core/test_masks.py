# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Masks, biases and rotations get room for the prompts, and nothing else changes."""

import pytest
import torch

from gated_prompt.architecture.masks import widen_argument, widen_mask, widen_rotations

P, PREFIX, N = 2, 1, 4
PROMPTS = slice(PREFIX, PREFIX + P)
KEPT = [0, 3, 4, 5]
LEAST = torch.finfo(torch.float32).min


@pytest.mark.parametrize(
    ("hidden", "visible", "dtype"),
    [
        (LEAST, 0.0, torch.float32),
        (-torch.inf, 0.0, torch.float32),
        (-10000.0, 0.0, torch.float16),
        (False, True, torch.bool),
        (0, 1, torch.int64),
    ],
)
def test_prompts_are_seen_and_see_no_padding(hidden: float, visible: float, dtype: torch.dtype) -> None:
    mask = torch.full((2, 1, N, N), visible, dtype=dtype)
    mask[1, ..., 3] = hidden  # padding
    mask[0, 0, 2, 1] = hidden  # hidden from one token only
    wide = widen_mask(mask, PROMPTS, N)
    assert wide.shape == (2, 1, N + P, N + P)
    assert wide.dtype == dtype
    assert torch.equal(wide[..., KEPT, :][..., KEPT], mask)
    assert (wide[..., 1:3] == visible).all()
    assert (wide[0, :, 1:3] == visible).all()
    assert (wide[1, :, 1:3] == torch.tensor([visible] * 5 + [hidden], dtype=dtype)).all()


def test_keys_alone() -> None:
    mask = torch.tensor([[1, 1, 1, 0]])
    assert widen_mask(mask, PROMPTS, N).tolist() == [[1, 1, 1, 1, 1, 0]]
    assert widen_mask(torch.zeros(2, 1, 1, N), PROMPTS, N).shape == (2, 1, 1, N + P)


def test_a_bias_gives_prompts_nothing() -> None:
    bias = torch.randn(1, 3, N, N)
    wide = widen_mask(bias, PROMPTS, N)
    assert torch.equal(wide[..., KEPT, :][..., KEPT], bias)
    assert wide[..., 1:3].abs().sum() == wide[..., 1:3, :].abs().sum() == 0


def test_rotations_leave_prompts_alone() -> None:
    angles = torch.randn(3, 6)
    wide = widen_rotations(torch.cat((angles.sin(), angles.cos()), -1), PROMPTS)
    assert torch.equal(wide[P:], torch.cat((angles.sin(), angles.cos()), -1))
    assert torch.equal(wide[:P], torch.tensor([[0.0] * 6 + [1.0] * 6] * P))


def test_rotations_of_all_tokens_leave_prompts_alone() -> None:
    pair = torch.randn(N, 6).cos(), torch.randn(N, 6).sin()
    for cosines, sines in (pair, tuple(part.expand(2, 1, N, 6) for part in pair)):
        wide = widen_argument("position_embeddings", (cosines, sines), PROMPTS, N)
        for part, before, unrotated in zip(wide, (cosines, sines), (1.0, 0.0), strict=True):
            assert torch.equal(part[..., KEPT, :], before)
            assert (part[..., PROMPTS, :] == unrotated).all()


@pytest.mark.parametrize("value", [None, True, (4, 4), torch.zeros(N), torch.zeros(2, 7), (torch.zeros(3, N),)])
def test_other_arguments_pass_as_they_are(value: object) -> None:
    assert widen_argument("anything", value, PROMPTS, N) is value
