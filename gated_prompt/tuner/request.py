# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What the forwards of a thread are asked to compute, where that is not the active adapter."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, Optional

from ..architecture.adapter import Adapter

if TYPE_CHECKING:
    from .forward import Forward, PromptTensors
    from .mixed_batch import MixedImages


class Request(NamedTuple):
    """Overrides of the defaults for forwards of `bank`.

    `adapters`: the adapter to use, empty for the base. None means the active one. `images`: those of a mixed batch.
    `in_sequence`: see `Forward`. `own_heads`: use the heads of the active adapter all the same. `requested` fills in
    the rest: the request around this one, the active adapter, and how often this thread had switched adapters.
    """

    bank: "PromptTensors"
    adapters: tuple[Adapter, ...] | None = None
    images: Optional["MixedImages"] = None
    in_sequence: bool = False
    own_heads: bool = False
    outer: Optional["Request"] = None
    active: tuple[Adapter, ...] = ()
    switches: int = 0

    @property
    def chooses(self) -> bool:
        """Whether it says which adapters to use."""
        return self.adapters is not None or self.images is not None


class _Local(threading.local):
    def __init__(self) -> None:  # runs in each thread
        self.forward: Forward | None = None
        self.request: Request | None = None
        self.switches = 0  # how often this thread activated, enabled or disabled adapters


LOCAL = _Local()


@contextmanager
def requested(request: Request) -> Iterator[None]:
    """Apply `request` to the forwards of this thread inside the `with` block."""
    before, active = LOCAL.request, request.bank.adapters_in_use
    try:
        LOCAL.request = request._replace(outer=before, active=active, switches=LOCAL.switches)
        yield
    finally:
        LOCAL.request = before
