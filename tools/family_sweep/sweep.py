# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""One record for each class: whether gated prompts work on it, are refused, or could not be tried."""

import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from gated_prompt import ArchitectureError, GatedPromptError, find_head_names, find_vision_transformer

from . import timm_models, tiny
from .checks import adapted, faults

LONGEST = 90  # seconds of processor time for one class
Record = dict[str, Any]


def record(name: str) -> Record:
    """Try one class of transformers, or one model of timm (`timm/NAME`).

    `status`: "works", "refused", "faulty" (accepted, but a check fails) or "not run" (it cannot be made tiny, or needs
    inputs that the sweep does not have).
    """
    build: Callable[[], nn.Module]
    if name.startswith("timm/"):
        build, inputs = lambda: timm_models.build(name.removeprefix("timm/")), timm_models.candidates
    else:
        build, inputs = lambda: tiny.build(name), tiny.candidates
    with warnings.catch_warnings(), _limited():
        warnings.simplefilter("ignore")
        try:
            return {"family": _family(name), **_tried(build, inputs)}
        except TimeoutError as error:
            return {"family": _family(name), "status": "not run", "reason": str(error)}
        except Exception as error:
            return {"family": _family(name), "status": "faulty", "faults": [_line(error)]}


def _family(name: str) -> str:
    return "timm" if name.startswith("timm/") else tiny.family(name)


def _tried(
    build: Callable[[], nn.Module], inputs: Callable[[nn.Module], Iterator[tuple[str, Callable[[], tiny.Inputs]]]]
) -> Record:
    try:
        base = build()
    except Exception as error:
        return {"status": "not run", "reason": f"cannot be made tiny: {_line(error)}"}
    try:
        vit = find_vision_transformer(base)
        adapted(build())
    except ArchitectureError as error:
        return {"status": "refused", "reason": str(error)}
    found = {"prefix": vit.num_prefix_tokens, "blocks": vit.tower.path, "head": find_head_names(base, vit)}
    found["zero_start"] = vit.unfit_for_zero_start is None
    first = ""
    for what, make in inputs(base):
        called: list[int] = []
        handle = vit.blocks[0].register_forward_pre_hook(lambda *_, called=called: called.append(1))
        try:
            torch.manual_seed(0)
            with torch.no_grad():
                base(**make())
        except Exception as error:
            first, called = first or _line(error), []
        finally:
            handle.remove()
        if not called:
            continue
        try:
            wrong = faults(build, lambda model, images, make=make: _run(model, make(), images), len(vit.blocks))
        except GatedPromptError as error:
            return {"status": "refused", "reason": str(error), "inputs": what, **found}
        return {
            "status": "faulty" if wrong else "works",
            "inputs": what,
            **({"faults": wrong} if wrong else {}),
            **found,
        }
    return {"status": "not run", "reason": f"no inputs of the sweep fit: {first}", **found}


def _run(model: nn.Module, inputs: tiny.Inputs, images: slice) -> Any:
    torch.manual_seed(0)  # MAE drops random patches
    return model(**{k: v[images] if isinstance(v, torch.Tensor) else v for k, v in inputs.items()})


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0][:160]}"


@contextmanager
def _limited() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"took more than {LONGEST} s")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, LONGEST)  # a busy machine makes no class faulty
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
