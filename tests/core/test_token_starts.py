"""The reservoir is a fair draw, also put together from several; means over places are exact."""

import math
import pickle

import numpy as np
import pytest
import torch

from gated_prompt import GatedPromptError
from gated_prompt.starts.matched import Mean, expand, match
from gated_prompt.starts.tokens import CLUSTERED, ClusteredTokens, Reservoir, SampledTokens


def draw(size: int, parts: list[list[int]], seed: int) -> list[int]:
    """Numbers 0, 1, ... through reservoirs of `size`, one a part, each fed in batches; what is left after merging."""
    filled, start = [], 0
    for rank, batches in enumerate(parts):
        reservoir = Reservoir(size, np.random.default_rng((seed, rank)))
        for length in batches:
            reservoir.add(torch.arange(start, start + length)[:, None])
            start += length
        filled.append(reservoir)
    filled[0].merge(filled[1:])
    return filled[0].rows().flatten().int().tolist()


@pytest.mark.parametrize("parts", [[[12]], [[1, 3, 8]], [[2, 2], [8]], [[], [11], [1]]], ids=str)
def test_every_row_is_as_likely_as_any_other_at_every_place(parts: list[list[int]]) -> None:
    """Chi-squared of 4000 draws of 3 out of 12; the bound is the 99.99 % point for 11 degrees of freedom."""
    draws = np.array([draw(3, parts, seed) for seed in range(4000)])
    assert all(len(set(row)) == 3 for row in draws)
    for place in range(3):
        counts = np.bincount(draws[:, place], minlength=12)
        assert ((counts - 4000 / 12) ** 2 / (4000 / 12)).sum() < 37.4
    # Pairs as well: rows that came together in one batch are not kept together.
    together = np.array([[(row == a).any() and (row == b).any() for a, b in ((0, 1), (0, 11))] for row in draws])
    expected = 3 / 12 * 2 / 11
    assert np.abs(together.mean(0) - expected).max() < 4 * math.sqrt(expected * (1 - expected) / 4000)


def test_memory_does_not_grow() -> None:
    reservoir = Reservoir(5, np.random.default_rng(0))
    for _ in range(20):
        reservoir.add(torch.randn(50, 4, dtype=torch.float16))
    assert reservoir.rows().shape == (5, 4) and reservoir.rows().dtype == torch.float32
    assert reservoir.seen == 1000
    assert len(pickle.dumps(reservoir)) < 3000  # what a process sends


def test_padding_is_never_drawn() -> None:
    tokens = torch.arange(12.0).reshape(2, 6, 1)
    visible = torch.tensor([[True] * 6, [True, True, False, False, False, False]])
    start = SampledTokens(8, np.random.default_rng(0))
    start.add(tokens, visible)
    assert sorted(start.prompts().flatten().tolist()) == [0, 1, 2, 3, 4, 5, 6, 7]
    windows = SampledTokens(2, np.random.default_rng(0), pool=lambda t: t)
    windows.add(tokens, torch.ones_like(visible))
    with pytest.raises(GatedPromptError, match="padding"):
        windows.add(tokens, visible)


def test_k_means_sees_a_bounded_number_of_tokens() -> None:
    start = ClusteredTokens(2, np.random.default_rng(0), seed=0)
    blobs = torch.randn(5 * CLUSTERED, 3) * 0.1
    blobs[: 2 * CLUSTERED] += 5.0
    for part in blobs.split(1000):
        start.add(part[None], None)
    assert len(start.reservoir.rows()) == CLUSTERED
    share = (start.reservoir.rows().mean(1) > 2.5).float().mean()
    assert share == pytest.approx(0.4, abs=0.03)
    centres = start.prompts()
    torch.testing.assert_close(
        centres[centres[:, 0].argsort()], torch.tensor([[0.0] * 3, [5.0] * 3]), atol=0.05, rtol=0
    )


def test_means_put_together() -> None:
    images = torch.randn(9, 4, 3)
    parts = [Mean(), Mean(), Mean()]
    parts[0].add(images[:2])
    parts[0].add(images[2:5])
    parts[2].add(images[5:].double())
    parts[1].merge([parts[0], parts[2]])
    torch.testing.assert_close(parts[1].value(), images.double().mean(0), atol=1e-6, rtol=0)
    assert parts[1].images == 9
    with pytest.raises(GatedPromptError, match="gave 4 and 5 tokens"):
        parts[1].add(torch.randn(1, 5, 3))


def test_matching_by_hand() -> None:
    tokens = torch.tensor([[1.0, 0], [0, 1], [10, 10]])
    keys = torch.tensor([[2.0, 0], [0, 0.1], [-1, -1]])  # cosine, so the length of a key says nothing
    random_keys = torch.tensor([[0.1, 0.09], [-3.0, -2.0]])
    found = match(tokens, keys, random_keys, neighbours=2)
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.5], [5.0, 5.5]]))
    assert torch.equal(match(tokens, keys, random_keys, neighbours=1), tokens[[0, 2]])


def test_expanded_prompts_have_values_outside_the_span() -> None:
    generator = torch.Generator().manual_seed(0)
    random, weight, outputs = (torch.randn(n, 8, generator=generator, dtype=torch.float64) for n in (5, 8, 3))
    repeated = torch.cat((outputs, outputs[:2] * 2))  # does not span more
    found = expand(random, weight, repeated)
    values = found @ weight.T
    torch.testing.assert_close(values @ outputs.T, torch.zeros(5, 3, dtype=torch.float64), atol=1e-9, rtol=0)
    lost = random @ weight.T - values  # lies in the span
    residual = torch.linalg.lstsq(outputs.T, lost.T).solution
    torch.testing.assert_close(outputs.T @ residual, lost.T, atol=1e-9, rtol=0)
    with pytest.raises(GatedPromptError, match="9 tokens of width 8: the attention outputs span all"):
        expand(random, weight, torch.randn(9, 8, generator=generator, dtype=torch.float64))
