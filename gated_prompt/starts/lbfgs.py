# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""L-BFGS for several linear models of the same features at once, each with a line search of its own.

Losses depend on the features through logits alone, which are linear in the parameters. So a line search costs no pass
over the features, and an iteration two: one for the logits of the direction, one for the gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

MEMORY = 8  # pairs of steps and gradient changes
SEARCHES = 12  # trial steps of one line search
FLATTER = 0.8  # a step is long enough when the slope along it has shrunk to this share
MOST_ITERATIONS = 2000


@dataclass(frozen=True)
class Objective:
    """T convex functions of parameters (T, K, R): loss of logits (T, N, K), plus penalty / 2 times their squares.

    Attributes:
        inputs: (N, R), shared by all.
        loss: logits -> (T,).
        slope: logits -> derivative of the loss, (T, N, K).
        penalty: (R,), 0 for parameters without a penalty.
        scale: (K, R), about the inverse of the second derivative: only how fast the minimum is found depends on it.
    """

    inputs: Tensor
    loss: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    penalty: Tensor
    scale: Tensor

    def logits(self, parameters: Tensor) -> Tensor:
        flat = parameters.flatten(0, 1) @ self.inputs.T
        return flat.unflatten(0, parameters.shape[:2]).transpose(1, 2)

    def gradient(self, parameters: Tensor, logits: Tensor) -> Tensor:
        slopes = self.slope(logits).transpose(1, 2).flatten(0, 1)
        return (slopes @ self.inputs).view_as(parameters) + self.penalty * parameters


def minimise(objective: Objective, start: Tensor, tolerance: float) -> Tensor:
    """Parameters (T, K, R) at the minima, found from `start`.

    It ends where each function is expected to fall by less than about `tolerance` of its value.
    """
    x, logits = start, objective.logits(start)
    gradient = objective.gradient(x, logits)
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(MOST_ITERATIONS):
        value = objective.loss(logits) + _dot(objective.penalty * x, x) / 2
        if bool((_dot(gradient, gradient * objective.scale) <= tolerance * value).all()):
            break
        direction = -_inverse_hessian(gradient, objective.scale, pairs)
        along = objective.logits(direction)
        length = _line_search(objective, x, logits, direction, along, _dot(gradient, direction))
        step = length[:, None, None] * direction
        if not bool(step.any()):
            break  # precision is exhausted
        x, logits = x + step, logits + length[:, None, None] * along
        new = objective.gradient(x, logits)
        change = new - gradient
        curvature = _dot(step, change)
        pairs = [*pairs[1 - MEMORY :], (step, change, torch.where(curvature > 0, 1 / curvature, 0))]
        gradient = new
    return x


def _inverse_hessian(gradient: Tensor, scale: Tensor, pairs: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """The two-loop recursion (Nocedal and Wright, Algorithm 7.4), from the diagonal `scale`."""
    found, shares = gradient.clone(), []
    for step, change, inverse in reversed(pairs):
        shares.append(inverse * _dot(step, found))
        found -= shares[-1][:, None, None] * change
    found *= scale
    if pairs:
        _, change, inverse = pairs[-1]
        factor = torch.where(inverse > 0, 1 / (inverse * _dot(change * scale, change)), 1)
        found *= factor[:, None, None]
    for (step, change, inverse), share in zip(pairs, reversed(shares), strict=True):
        found += (share - inverse * _dot(change, found))[:, None, None] * step
    return found


def _line_search(
    objective: Objective, x: Tensor, logits: Tensor, direction: Tensor, along: Tensor, first: Tensor
) -> Tensor:
    """Lengths (T,) by bracketing and interpolating the slope, which grows with the length. `first`: slopes at 0."""
    linear, square = _dot(objective.penalty * x, direction), _dot(objective.penalty * direction, direction)
    length, low = torch.ones_like(first), torch.zeros_like(first)
    high, low_slope, high_slope = torch.full_like(first, torch.inf), first.clone(), torch.zeros_like(first)
    for _ in range(SEARCHES):
        slopes = objective.slope(logits + length[:, None, None] * along)
        slope = _dot(slopes, along) + linear + length * square
        good = slope.abs() <= FLATTER * first.abs()
        if bool(good.all()):
            return length
        short, far = ~good & (slope < 0), ~good & (slope >= 0)
        low, low_slope = torch.where(short, length, low), torch.where(short, slope, low_slope)
        high, high_slope = torch.where(far, length, high), torch.where(far, slope, high_slope)
        inside = low - low_slope * (high - low) / (high_slope - low_slope)
        length = torch.where(good, length, torch.where(high.isinf(), 3 * length, inside))
    return torch.where(good, length, low)  # downhill, if not far enough


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)
