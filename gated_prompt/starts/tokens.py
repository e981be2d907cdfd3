# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Prompts from the patch tokens of images: a random choice of them, of their means or maxima, or cluster centres.

The first three are those of Wang et al., *Revisiting the Power of Prompt for Visual Prompt Tuning* (SPT, ICML 2024,
https://arxiv.org/abs/2402.02382). However many images pass, what is kept in memory is one reservoir.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..errors import GatedPromptError

CLUSTERED = 8192  # tokens of one block that k-means sees; 24 MiB at width 768
Pool = Callable[[torch.Tensor], torch.Tensor]


class Reservoir:
    """A uniform random choice of `size` rows out of all that were added, without replacement.

    Every row gets a random key, and those with the smallest keys stay. So reservoirs of several processes, each with
    its own keys, merge into a uniform choice out of all their rows, whatever their numbers.
    """

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.size, self.seen, self._rng = size, 0, rng
        self._keys = torch.empty(0, dtype=torch.float64)
        self._rows = torch.empty(0, 0)

    def add(self, rows: torch.Tensor) -> None:
        """Offer rows (M, D), on any device and of any precision. Those kept are float32 on the CPU."""
        keys = torch.from_numpy(self._rng.random(len(rows)))
        self.seen += len(rows)
        chosen = torch.cat((self._keys, keys)).argsort()[: self.size]
        old, new = chosen[chosen < len(self._keys)], chosen[chosen >= len(self._keys)] - len(self._keys)
        taken = rows[new.to(rows.device)].float().cpu()
        self._rows = torch.cat((self._rows[old], taken)) if len(old) else taken
        self._keys = torch.cat((self._keys[old], keys[new]))

    def merge(self, others: Sequence["Reservoir"]) -> None:
        """Take in what other reservoirs of this size hold."""
        full = [part for part in (self, *others) if part.seen]
        self.seen = sum(part.seen for part in full)
        if full:
            keys, rows = torch.cat([part._keys for part in full]), torch.cat([part._rows for part in full])
            chosen = keys.argsort()[: self.size]
            self._keys, self._rows = keys[chosen], rows[chosen]

    def rows(self) -> torch.Tensor:
        """The rows (size, D), or all where fewer were added, in random order."""
        return self._rows[self._keys.argsort()]


class SampledTokens:
    """Prompts of one block: `count` random rows of what `pool` makes of the tokens (B, N, D) of each batch."""

    def __init__(self, count: int, rng: np.random.Generator, pool: Pool | None = None) -> None:
        self.pool, self.reservoir = pool, Reservoir(count, rng)

    def add(self, tokens: torch.Tensor, visible: torch.Tensor | None) -> None:
        """Offer patch tokens (B, N, D), of which those are images where `visible` (B, N) is True. None means all."""
        if self.pool is not None:
            refuse_padding(visible)
            tokens, visible = self.pool(tokens), None
        self.reservoir.add(tokens.flatten(0, 1) if visible is None else tokens[visible])

    def merge(self, others: Sequence["SampledTokens"]) -> None:
        self.reservoir.merge([other.reservoir for other in others])

    def prompts(self) -> torch.Tensor:
        """Prompts (count, D).

        Raises:
            GatedPromptError: the images gave fewer tokens.
        """
        refuse_too_few(self.reservoir.seen, self.reservoir.size)
        return self.reservoir.rows()


class ClusteredTokens(SampledTokens):
    """Prompts of one block: the centres of `count` clusters of a random choice of its tokens."""

    def __init__(self, count: int, rng: np.random.Generator, seed: int) -> None:
        super().__init__(max(CLUSTERED, count), rng)
        self.count, self.seed = count, seed

    def prompts(self) -> torch.Tensor:
        """Prompts (count, D), by scikit-learn's MiniBatchKMeans.

        Raises:
            GatedPromptError: the images gave fewer tokens than `count`.
        """
        refuse_too_few(self.reservoir.seen, self.count)
        kmeans = mini_batch_kmeans()(self.count, random_state=self.seed, n_init=3, batch_size=1024)
        centres = kmeans.fit(self.reservoir.rows().numpy()).cluster_centers_
        return torch.from_numpy(np.asarray(centres, dtype=np.float32))


def windows(length: int, count: int) -> list[int]:
    """Lengths of the windows that SPT cuts `length` tokens into: P - 1 of `length` // (P - 1) and one with the rest.

    Without a rest it is left out. For one prompt there is one window, and no window is shorter than a token.
    """
    many = min(max(count - 1, 1), length)
    sizes = [length // many] * many
    rest = length - sum(sizes)
    return [*sizes, rest] if rest else sizes


def mean_of_windows(tokens: torch.Tensor, count: int) -> torch.Tensor:
    """Tokens (B, N, D) to the mean of each window, (B, W, D)."""
    return torch.stack([window.mean(1) for window in tokens.split(windows(tokens.shape[1], count), dim=1)], dim=1)


def max_of_windows(tokens: torch.Tensor, count: int) -> torch.Tensor:
    """Tokens (B, N, D) to the maximum of each window and channel, (B, W, D)."""
    return torch.stack([window.amax(1) for window in tokens.split(windows(tokens.shape[1], count), dim=1)], dim=1)


def mini_batch_kmeans() -> Callable[..., Any]:
    """scikit-learn's class.

    Raises:
        GatedPromptError: scikit-learn is not installed.
    """
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError as error:
        raise GatedPromptError(
            "method='kmeans' needs scikit-learn. Run pip install 'gated-prompt[init]', or use another method."
        ) from error
    return MiniBatchKMeans


def refuse_too_few(found: int, needed: int) -> None:
    """Raise GatedPromptError where images gave `found` tokens and `needed` are needed."""
    if found < needed:
        raise GatedPromptError(
            f"the images gave {found} tokens to start from, but num_virtual_tokens is {needed}. Give more images."
        )


def refuse_padding(visible: torch.Tensor | None) -> None:
    """Raise GatedPromptError where some of the tokens are padding, and windows or places in the image are needed."""
    if visible is not None and not bool(visible.all()):
        raise GatedPromptError(
            "some patch tokens are padding (pixel_attention_mask), which this method would mix with the image. Use "
            "method='sample' or 'kmeans', or images of one shape."
        )
