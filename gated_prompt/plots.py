# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Plots of what adapters have learned, of their training, and of where their prompts attend.

Every function draws on the given matplotlib Axes, or on new ones, and returns them, so you can set titles, limits and
scales (`ax.set_yscale("log")` for nearly closed gates). matplotlib comes with the `viz` extra and is imported when a
function is called. The colours are Okabe and Ito's colour-blind-safe palette. Lines and bars also differ in marker or
hatch.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from .errors import GatedPromptError
from .inspect.attention_maps import PromptAttention, prompt_attention
from .inspect.readouts import find_adapter, gates, head_gates, selection_ratios, temperatures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "PromptAttention",
    "Recording",
    "plot_gates",
    "plot_prompt_attention",
    "plot_selection_ratios",
    "plot_temperatures",
    "plot_training",
    "prompt_attention",
]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HATCHES = ("", "//", "\\\\", "xx", "..", "--", "++")
GREY = "0.45"
Models = nn.Module | Mapping[str, nn.Module]


class Recording(Protocol):
    """What `plot_training` reads, such as a `gated_prompt.GateRecorder`."""

    def to_dict(self) -> dict[str, Any]:
        """Return the steps, and for each step a row of values by block."""
        ...


def plot_gates(model: Models, adapter_names: Sequence[str] | None = None, *, ax: "Axes | None" = None) -> "Axes":
    """Plot the gate of each gated block. A dashed grey line marks the initial value.

    With zero start, that is the mean size of the gates of a block's attention heads.

    Args:
        model: a model with gated prompts, or several models by their names in the legend.
        adapter_names: adapters of one model to compare. None means the active one.
        ax: Axes to draw on. None means a new figure.

    Returns:
        The Axes.

    Raises:
        GatedPromptError: an adapter does not exist, names are given for several models, or there is nothing to draw.

    Example:
        ```python
        from gated_prompt.plots import plot_gates

        plot_gates(model).figure.savefig("gates.png")
        ```
    """
    ax = ax or _new_axes()
    starts = set()
    for count, (label, each, name) in enumerate(_adapters(model, adapter_names)):
        _, adapter = find_adapter(each, name)
        if adapter.config.zero_start:
            starts.add(0.0)
            _line(ax, count, list(adapter.blocks), head_gates(each, name).abs().mean(1).tolist(), label)
            continue
        values = gates(each, name).tolist()
        if values:
            starts.add(1 / (1 + math.exp(-adapter.config.gate_init)))
        _line(ax, count, list(adapter.gate_rows), values, label)
    _start_lines(ax, starts)
    return _label(ax, "gate", empty=not starts)


def plot_temperatures(
    model: Models, adapter_names: Sequence[str] | None = None, *, ax: "Axes | None" = None
) -> "Axes":
    """Plot the attention temperature of each block with prompts. A dashed grey line marks the initial value.

    Arguments and errors are those of `plot_gates`.

    Example:
        ```python
        from gated_prompt.plots import plot_temperatures

        plot_temperatures(model).figure.savefig("temperatures.png")
        ```
    """
    ax = ax or _new_axes()
    starts = set()
    for count, (label, each, name) in enumerate(_adapters(model, adapter_names)):
        _, adapter = find_adapter(each, name)
        values = temperatures(each, name).tolist()
        starts.add(adapter.config.temperature_init)
        note = label if adapter.config.temperature else f"{label} (fixed)"
        _line(ax, count, list(adapter.blocks), values, note)
    _start_lines(ax, starts)
    return _label(ax, "temperature")


def plot_selection_ratios(
    model: Models, adapter_names: Sequence[str] | None = None, *, ax: "Axes | None" = None
) -> "Axes":
    """Plot the share of each gated block's output in the last prompts, as bars that sum to 1 for each adapter.

    Arguments and errors are those of `plot_gates`.

    Example:
        ```python
        from gated_prompt.plots import plot_selection_ratios

        plot_selection_ratios({"birds": model}).set_title("Where the prompts come from")
        ```
    """
    ax = ax or _new_axes()
    shown = _adapters(model, adapter_names)
    width, drawn = 0.8 / len(shown), False
    for count, (label, each, name) in enumerate(shown):
        _, adapter = find_adapter(each, name)
        values = selection_ratios(each, name).tolist()
        drawn = drawn or bool(values)
        offset = (count - (len(shown) - 1) / 2) * width
        if not values:
            _legend_only(ax, label)
            continue
        ax.bar(
            [block + offset for block in adapter.gate_rows],
            values,
            width,
            color=COLOURS[count % len(COLOURS)],
            hatch=HATCHES[count % len(HATCHES)],
            edgecolor="white",
            label=label,
        )
    return _label(ax, "selection ratio", empty=not drawn)


def plot_training(
    recording: Recording | Mapping[str, Any], what: str = "gates", *, ax: "Axes | None" = None
) -> "Axes":
    """Plot gates, temperatures or selection ratios over training steps, with one line per block.

    Args:
        recording: a `gated_prompt.GateRecorder`, or the result of its `to_dict()`, with `steps` (T,), `gates` and
            `selection_ratios` (T, G) of the `gated_blocks` (G,), and `temperatures` (T, K) of the `blocks` (K,).
        what: "gates", "temperatures" or "selection_ratios".
        ax: Axes to draw on. None means a new figure.

    Returns:
        The Axes.

    Raises:
        GatedPromptError: `what` is unknown, or the recording is incomplete or inconsistent.

    Example:
        ```python
        from gated_prompt.plots import plot_training

        recorder = gated_prompt.GateRecorder()
        recorder.record(model, step=0)
        plot_training(recorder, "gates").set_yscale("log")
        ```
    """
    known = {"gates": "gate", "temperatures": "temperature", "selection_ratios": "selection ratio"}
    if what not in known:
        raise GatedPromptError(f"what is {what!r}. Expected one of {', '.join(known)}.")
    content = recording if isinstance(recording, Mapping) else recording.to_dict()
    try:
        steps, rows = list(content["steps"]), [list(row) for row in content[what]]
        blocks = list(content["blocks" if what == "temperatures" else "gated_blocks"])
    except (KeyError, TypeError) as error:
        raise GatedPromptError(
            f"the recording lacks {error}. Expected steps, {what} and their blocks, as GateRecorder.to_dict() returns."
        ) from error
    if len(rows) != len(steps) or any(len(row) != len(blocks) for row in rows):
        raise GatedPromptError(
            f"the recording has {len(steps)} steps and {len(blocks)} blocks, but {what} has shape "
            f"({len(rows)}, {'/'.join(str(n) for n in sorted({len(row) for row in rows}))})"
        )
    ax = ax or _new_axes()
    from matplotlib import cm, colormaps, colors, ticker

    if steps and blocks:
        scale = colors.LinearSegmentedColormap.from_list("blocks", colormaps["viridis"](torch.linspace(0, 0.85, 256)))
        colour = cm.ScalarMappable(colors.Normalize(blocks[0], max(blocks[-1], blocks[0] + 1)), scale)
        for column, block in enumerate(blocks):
            ax.plot(steps, [row[column] for row in rows], color=colour.to_rgba(block), label=f"block {block}")
        ax.figure.colorbar(colour, ax=ax, label="block", ticks=ticker.MaxNLocator(integer=True))
    return _label(ax, known[what], along="step", empty=not steps or not blocks, legend=False)


def plot_prompt_attention(
    attention: PromptAttention,
    image: Any,
    token: int | str = "prompts",
    *,
    block: int | None = None,
    index: int = 0,
    ax: "Axes | None" = None,
) -> "Axes":
    """Overlay the attention of prompts or of CLS on the image, one square per patch.

    Args:
        attention: the result of `prompt_attention`.
        image: the image that the model saw, cropped like by its image processor: a PIL image or an array (H, W, 3), of
            any size.
        token: the index of a chosen prompt, "prompts" for the mean of all chosen ones, or "cls".
        block: index of the block. None means the last.
        index: index of the image in the batch.
        ax: Axes to draw on. None means a new figure.

    Returns:
        The Axes.

    Raises:
        GatedPromptError: the token, block or image does not exist, or `image` is not a colour image.

    Example:
        ```python
        from gated_prompt.plots import plot_prompt_attention, prompt_attention

        attention = prompt_attention(model.eval(), pixel_values)
        plot_prompt_attention(attention, image, "cls").figure.savefig("cls.png")
        ```
    """
    block = attention.blocks[-1] if block is None else block
    if block not in attention.blocks:
        raise GatedPromptError(f"block is {block}. The prompts are in blocks {attention.blocks}.")
    if not 0 <= index < len(attention.prompts):
        raise GatedPromptError(f"index is {index}. There are {len(attention.prompts)} images, counted from 0.")
    weights, named = _weights(attention, token, attention.blocks.index(block), index)
    ax = ax or _new_axes((4.2, 3.6))
    height, width = weights.shape
    # One unit is one patch, whatever the image size.
    extent = (0.0, float(width), float(height), 0.0)
    ax.imshow(_grey(image), extent=extent, cmap="gray")  # so that only attention has colour
    shown = ax.imshow(weights.numpy(), extent=extent, cmap="inferno", alpha=0.5, interpolation="nearest", vmin=0)
    ax.figure.colorbar(shown, ax=ax, label="attention weight")
    ax.set(title=f"{named}, block {block}", xlabel="patch column", ylabel="patch row")
    return ax


def _weights(attention: PromptAttention, token: int | str, row: int, index: int) -> tuple[torch.Tensor, str]:
    """Return one map (h, w) and its title."""
    if token == "prompts":
        return attention.prompts[index, row].mean(dim=0), f"mean of {len(attention.chosen)} prompts"
    if token == "cls" and attention.cls is not None:
        return attention.cls[index, row], "CLS"
    if token in attention.chosen:
        return attention.prompts[index, row, attention.chosen.index(token)], f"prompt {token}"
    known = ["'prompts'", *(["'cls'"] if attention.cls is not None else []), *map(str, attention.chosen)]
    raise GatedPromptError(f"token is {token!r}. Expected one of {', '.join(known)}.")


def _grey(image: Any) -> Any:
    import numpy as np

    pixels = np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[-1] < 3:
        raise GatedPromptError(f"image has shape {pixels.shape}, expected (height, width, 3)")
    return pixels[..., :3].mean(axis=-1)


def _adapters(model: Models, adapter_names: Sequence[str] | None) -> list[tuple[str, nn.Module, str]]:
    """Return label, model and adapter name of each adapter to draw."""
    if isinstance(model, Mapping):
        if adapter_names is not None:
            raise GatedPromptError(
                "adapter_names is for a single model. With several models, activate an adapter on each."
            )
        found = [(label, each, find_adapter(each, None)[1].name) for label, each in model.items()]
    else:
        names = [
            find_adapter(model, name)[1].name for name in (adapter_names if adapter_names is not None else [None])
        ]
        found = [(name, model, name) for name in names]
    if not found:
        raise GatedPromptError("there is no adapter to draw. Give at least one.")
    return found


def _new_axes(size: tuple[float, float] = (5.0, 3.2)) -> "Axes":
    try:
        from matplotlib import pyplot as plt
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("plots require matplotlib: pip install 'gated-prompt[viz]'") from error
    return plt.subplots(figsize=size, layout="constrained")[1]


def _line(ax: "Axes", count: int, blocks: list[int], values: list[float], label: str) -> None:
    if values:
        colour, marker = COLOURS[count % len(COLOURS)], MARKERS[count % len(MARKERS)]
        ax.plot(blocks, values, color=colour, marker=marker, label=label)
    else:
        _legend_only(ax, label)


def _legend_only(ax: "Axes", label: str) -> None:
    """Add an entry to the legend without drawing anything."""
    ax.plot([], [], linestyle="none", label=f"{label} (none)")


def _start_lines(ax: "Axes", starts: set[float]) -> None:
    for count, start in enumerate(sorted(starts)):
        ax.axhline(start, color=GREY, linestyle="--", linewidth=1, label=None if count else "start")


def _label(ax: "Axes", name: str, *, along: str = "block", empty: bool = False, legend: bool = True) -> "Axes":
    """Label the axes, use integer ticks, and write a note if there is nothing to show."""
    from matplotlib.ticker import MaxNLocator

    ax.set(xlabel=along, ylabel=name)
    if empty:
        ax.text(0.5, 0.5, f"no {name}s to show", ha="center", va="center", transform=ax.transAxes)
        ax.set(xticks=[], yticks=[])
        return ax
    if legend:
        ax.legend()
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return ax
