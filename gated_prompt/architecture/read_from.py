# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Adapters with a `read_from`: what must not be asked of a model whose last blocks do not run."""

from typing import Any

from torch import nn

from ..errors import UnsupportedOperationError


def refuse_skipped_states(module: nn.Module, kwargs: dict[str, Any], adapter: Any) -> None:
    """Refuse to report hidden states of blocks that do not run, which would all be the same tensor.

    `output_hidden_states` asks for all states or none, or for some of the L + 1 by index (transformers 5.2x). The last
    one alone is allowed: the head reads it.

    Raises:
        UnsupportedOperationError: such states are asked for.
    """
    asked = kwargs.get("output_hidden_states")
    if asked is None:
        asked = getattr(getattr(module, "config", None), "output_hidden_states", False)
    count, last = adapter.num_layers + 1, adapter.last
    indices = range(count if asked else 0) if isinstance(asked, bool) else [asked] if isinstance(asked, int) else asked
    chosen = {index % count for index in indices}
    if chosen != {count - 1} and max(chosen, default=0) > last + 1:
        raise UnsupportedOperationError(
            f"{type(module).__name__} was asked for hidden states above block {last}, but adapter "
            f"{adapter.name!r} has read_from={last}, so those blocks do not run. Read blocks 0 to "
            f"{last} with forward hooks, or use read_from=None."
        )
