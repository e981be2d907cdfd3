# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Say so where a forward fails because of its prompts."""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..architecture.batches import Inputs
from .forward import Forward
from .request import Request, requested

SHAPES = re.compile(r"\b(shapes?|sizes?|dim(ension)?s?|elements?|channels?|expand(ed)?|broadcast(ed)?|length)\b", re.I)


def add_note(error: Exception, module: nn.Module, run: Callable[..., Any], forward: Forward, inputs: Inputs) -> None:
    """Add a note to an error about shapes if `module` runs on the same inputs without prompts.

    A model may have something, such as a table of positions, that fits its own number of tokens only. Other errors are
    left alone, and the model is not called again for them. Nor with several processes, where the others do not call.
    """
    if type(error) not in (RuntimeError, ValueError, IndexError) or not SHAPES.search(str(error)):
        return
    if forward.length < 0 or (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    try:
        with requested(Request(forward.bank, adapters=())):
            run(*inputs[0], **inputs[1])
    except Exception:
        return
    count = forward.adapters[0].config.num_virtual_tokens
    error.add_note(
        f"{type(module).__name__} fails with {count} prompts among its {forward.length} tokens, but runs without "
        "them: part of it fits its own number of tokens only. Prompts that are keys and values only may work: "
        "GatedPromptConfig(deep=True)"
    )
