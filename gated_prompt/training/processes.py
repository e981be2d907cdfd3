# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Combine values from all processes of a run into one result on each."""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from ..errors import GatedPromptError

Local = TypeVar("Local")
Result = TypeVar("Result")


def rank_and_world() -> tuple[int, int]:
    """Return the rank of this process and the world size, (0, 1) outside torch.distributed."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def combine(local: Callable[[], Local], finish: Callable[[list[Local]], Result]) -> Result:
    """Gather the values of `local` from all processes, apply `finish` on process 0, and return its result on all.

    All values are pickled. An error on one process is raised on all of them, since the others would wait for it
    forever.

    Raises:
        GatedPromptError: another process failed. This one's own errors are raised unchanged.
    """
    rank, world = rank_and_world()
    if world == 1:
        return finish([local()])
    mine, own_error = _attempt(local)
    parts: list[tuple[Local | None, str | None]] | None = [(None, None)] * world if rank == 0 else None
    dist.gather_object((mine, _text(own_error)), parts)
    answer: list[tuple[Result | None, str | None]] = [(None, None)]
    if parts is not None:
        answer = [_finish(parts, finish)]
    dist.broadcast_object_list(answer)
    if own_error is not None:
        raise own_error
    result, fault = answer[0]
    if fault is not None:
        raise GatedPromptError(fault)
    return result  # type: ignore[return-value]  # None only beside a fault


def _finish(
    parts: list[tuple[Local | None, str | None]], finish: Callable[[list[Local]], Result]
) -> tuple[Result | None, str | None]:
    faults = [f"process {rank}: {fault}" for rank, (_, fault) in enumerate(parts) if fault is not None]
    if faults:
        return None, "; ".join(faults)
    result, error = _attempt(lambda: finish([value for value, _ in parts]))  # type: ignore[misc]
    return result, _text(error)


def _attempt(step: Callable[[], Result]) -> tuple[Result | None, Exception | None]:
    try:
        return step(), None
    except Exception as error:
        return None, error


def _text(error: Exception | None) -> str | None:
    if error is None:
        return None
    return str(error) if isinstance(error, GatedPromptError) else f"{type(error).__name__}: {error}"
