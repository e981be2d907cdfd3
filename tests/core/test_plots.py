# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Plots: their numbers, and that the rendered image shows them to a reader."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from PIL import Image

import gated_prompt
from gated_prompt import GatedPromptConfig, GatedPromptError, plots
from helpers.models import bank_of, images, vit

mpl.use("Agg")
from matplotlib import colors
from matplotlib import pyplot as plt


@pytest.fixture(autouse=True)
def no_open_figures() -> Any:
    yield
    plt.close("all")


@pytest.fixture
def model() -> PeftModel:
    """Three adapters: gated from block 0, gated from block 1 with a fixed temperature, and deep without gates."""
    torch.manual_seed(0)
    model = get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=3, gate_init=-1.0), adapter_name="birds")
    model.add_adapter("pets", GatedPromptConfig(insert_at=1, temperature=False, temperature_init=1.5))
    model.add_adapter("deep", GatedPromptConfig(deep=True))
    bank = bank_of(model)
    for logits in bank.gated_prompt_gate_logits.values():
        logits.data += torch.randn(logits.shape)
    for tau in bank.gated_prompt_temperatures.values():
        tau.data *= 0.5 + torch.rand(tau.shape)
    return model.eval()


def points(ax: plt.Axes) -> dict[str, tuple[list[float], list[float]]]:
    """What each labelled line shows."""
    return {str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines}


def legend(ax: plt.Axes) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def pixels(ax: plt.Axes, dpi: int = 120) -> np.ndarray:
    ax.figure.set_dpi(dpi)
    ax.figure.canvas.draw()
    return np.asarray(ax.figure.canvas.buffer_rgba())[..., :3].astype(int)


def count(ax: plt.Axes, colour: str) -> int:
    """Pixels of this colour."""
    wanted = np.round(np.array(colors.to_rgb(colour)) * 255)
    return int((abs(pixels(ax) - wanted).max(axis=-1) <= 2).sum())


def assert_readable(ax: plt.Axes) -> None:
    """Labelled axes, text of at least 10 pixels inside the figure, at the size of a model card's image."""
    assert ax.get_xlabel() and ax.get_ylabel()
    ax.figure.set_dpi(120)
    ax.figure.canvas.draw()
    whole = ax.figure.bbox
    texts = [ax.xaxis.label, ax.yaxis.label]
    for axis in (ax.xaxis, ax.yaxis):
        low, high = sorted(axis.get_view_interval())
        ticks = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
        inside = [label for place, label in ticks if low <= place <= high]
        assert len(inside) >= 2
        texts += inside
    boxes = [text.get_window_extent() for text in texts]
    for box in boxes:
        assert max(box.height, box.width) >= 10
        assert whole.x0 - 1 <= box.x0 and box.x1 <= whole.x1 + 1 and whole.y0 - 1 <= box.y0 and box.y1 <= whole.y1 + 1


def test_gates_and_where_they_started(model) -> None:
    ax = plots.plot_gates(model)
    blocks, values = points(ax)["birds"]
    assert blocks == [0, 1, 2]
    assert values == gated_prompt.gates(model).tolist()
    assert points(ax)["start"][1] == pytest.approx([torch.sigmoid(torch.tensor(-1.0)).item()] * 2)
    assert legend(ax) == ["birds", "start"]
    assert_readable(ax)
    assert count(ax, plots.COLOURS[0]) > 200


def test_several_adapters_side_by_side(model) -> None:
    ax = plots.plot_gates(model, ["birds", "pets", "deep"])
    assert points(ax)["pets"] == ([1, 2], gated_prompt.gates(model, "pets").tolist())
    assert legend(ax) == ["birds", "pets", "deep (none)", "start"]
    assert sorted(line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == "--") == pytest.approx(
        torch.sigmoid(torch.tensor([-5.0, -1.0])).tolist()
    )
    assert count(ax, plots.COLOURS[0]) > 200 and count(ax, plots.COLOURS[1]) > 200
    drawn = [line for line in ax.lines if line.get_marker() not in ("None", "")]
    assert len({line.get_marker() for line in drawn}) == len({line.get_color() for line in drawn}) == 2
    assert_readable(ax)


def test_several_models(model) -> None:
    other = get_peft_model(vit(), GatedPromptConfig(gate_init=2.0))
    ax = plots.plot_gates({"MAE": model, "MoCo v3": other})
    assert points(ax)["MAE"][1] == gated_prompt.gates(model).tolist()
    assert points(ax)["MoCo v3"][1] == gated_prompt.gates(other).tolist()
    with pytest.raises(GatedPromptError, match="adapter_names is for a single model"):
        plots.plot_gates({"MAE": model}, ["birds"])
    for nothing in ({}, {"model": vit()}):
        with pytest.raises(GatedPromptError, match=r"no adapter to draw|carries no gated prompts"):
            plots.plot_gates(nothing)


def test_temperatures(model) -> None:
    ax = plots.plot_temperatures(model, ["birds", "pets"])
    shown = points(ax)
    assert shown["birds"] == ([0, 1, 2, 3], gated_prompt.temperatures(model, "birds").tolist())
    assert shown["pets (fixed)"] == ([1, 2, 3], [1.5, 1.5, 1.5])
    assert ax.get_ylabel() == "temperature"
    assert_readable(ax)


def test_selection_ratios_are_bars_that_do_not_overlap(model) -> None:
    ax = plots.plot_selection_ratios(model, ["birds", "deep", "pets"])
    birds, pets = ax.containers
    for bars, name in ((birds, "birds"), (pets, "pets")):
        assert [bar.get_height() for bar in bars] == pytest.approx(gated_prompt.selection_ratios(model, name).tolist())
        assert sum(bar.get_height() for bar in bars) == pytest.approx(1)
    assert [round(bar.get_center()[0]) for bar in birds] == [0, 1, 2]
    assert [round(bar.get_center()[0]) for bar in pets] == [1, 2]
    edges = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in ax.patches)
    assert all(left[1] <= right[0] + 1e-9 for left, right in pairwise(edges))
    assert "deep (none)" in legend(ax)
    assert_readable(ax)
    assert count(ax, plots.COLOURS[0]) > 500


@pytest.mark.parametrize("draw", [plots.plot_gates, plots.plot_selection_ratios])
def test_an_adapter_without_gates_says_so(model, draw) -> None:
    ax = draw(model, ["deep"])
    assert ax.texts[0].get_text().startswith("no ")
    assert len(np.unique(pixels(ax).reshape(-1, 3), axis=0)) > 10  # the words are there to see


def test_axes_of_ones_own(model) -> None:
    _, (left, right) = plt.subplots(1, 2)
    assert plots.plot_gates(model, ax=left) is left
    assert plots.plot_temperatures(model, ax=right) is right
    assert len(plt.get_fignums()) == 1
    for draw in (plots.plot_gates, plots.plot_temperatures, plots.plot_selection_ratios):
        with pytest.raises(GatedPromptError, match="no adapter 'cats' here"):
            draw(model, ["cats"], ax=left)


RECORD = {
    "steps": [0, 10, 20],
    "gates": [[0.1, 0.2, 0.3], [0.2, 0.2, 0.1], [0.3, 0.2, 0.05]],
    "temperatures": [[1.0, 1.0], [1.1, 0.9], [1.2, 0.8]],
    "selection_ratios": [[0.2, 0.3, 0.5], [0.3, 0.3, 0.4], [0.4, 0.3, 0.3]],
    "gated_blocks": [1, 2, 5],
    "blocks": [1, 2],
}


class Recorder:
    def to_dict(self) -> dict[str, Any]:
        return RECORD


@pytest.mark.parametrize("recording", [RECORD, Recorder()], ids=["dict", "object"])
@pytest.mark.parametrize("what", ["gates", "temperatures", "selection_ratios"])
def test_training(recording: Any, what: str) -> None:
    ax = plots.plot_training(recording, what)
    blocks = RECORD["blocks" if what == "temperatures" else "gated_blocks"]
    assert points(ax) == {
        f"block {block}": ([0, 10, 20], [row[column] for row in RECORD[what]]) for column, block in enumerate(blocks)
    }
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", what.removesuffix("s").replace("_", " "))
    drawn = [colors.to_hex(line.get_color()) for line in ax.lines]
    assert len(set(drawn)) == len(blocks)
    assert all(count(ax, colour) > 100 for colour in drawn)
    assert ax.figure.axes[1].get_ylabel() == "block"
    assert_readable(ax)


def test_training_of_one_block_or_none() -> None:
    one = {"steps": [0, 1], "gates": [[0.1], [0.2]], "gated_blocks": [3]}
    assert list(points(plots.plot_training(one))) == ["block 3"]
    none = {"steps": [0, 1], "gates": [[], []], "gated_blocks": []}
    assert plots.plot_training(none).texts[0].get_text() == "no gates to show"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": [0]}, r"1 steps and 3 blocks, but gates has shape \(3, 3\)"),
        ({"gates": [[1, 2, 3], [1, 2], [1, 2, 3]]}, r"gates has shape \(3, 2/3\)"),
        ({"gates": None}, r"the recording lacks .*as GateRecorder.to_dict"),
        ({"gated_blocks": None}, r"the recording lacks .*as GateRecorder.to_dict"),
    ],
)
def test_recordings_that_do_not_fit_together(change: dict[str, Any], message: str) -> None:
    with pytest.raises(GatedPromptError, match=message):
        plots.plot_training({**RECORD, **change})
    assert plt.get_fignums() == []


def test_unknown_measure() -> None:
    with pytest.raises(
        GatedPromptError, match=r"what is 'loss'. Expected one of gates, temperatures, selection_ratios"
    ):
        plots.plot_training(RECORD, "loss")


@pytest.fixture
def attention() -> plots.PromptAttention:
    """Two images, two blocks, two prompts, 2 x 3 patches: one patch of each map gets everything."""
    prompts, cls = torch.zeros(2, 2, 2, 2, 3), torch.zeros(2, 2, 2, 3)
    prompts[0, 1, 0, 0, 0] = prompts[0, 1, 1, 1, 2] = prompts[1, 0, 1, 1, 0] = 1.0
    cls[0, 1, 0, 2] = 1.0
    return plots.PromptAttention(blocks=[2, 3], chosen=[4, 7], prompts=prompts, cls=cls)


WHITE = Image.new("RGB", (90, 60), "white")


def overlay(ax: plt.Axes) -> np.ndarray:
    return np.asarray(ax.images[1].get_array())


def test_attention_over_the_image(attention) -> None:
    ax = plots.plot_prompt_attention(attention, WHITE, 4)
    assert np.array_equal(overlay(ax), [[1, 0, 0], [0, 0, 0]])
    assert ax.images[0].get_extent() == ax.images[1].get_extent() == [0.0, 3.0, 2.0, 0.0]
    assert ax.get_title() == "prompt 4, block 3"
    assert ax.figure.axes[1].get_ylabel() == "attention weight"
    assert_readable(ax)
    # in the rendered image the top left patch is bright, the others are dark
    seen = pixels(ax)
    bright, dark = (
        seen[int(seen.shape[0] - y), int(x)].sum() for x, y in ax.transData.transform([(0.5, 0.5), (1.5, 1.5)])
    )
    assert bright > dark + 150


def test_which_attention_is_shown(attention) -> None:
    def shown(*args: Any, **kwargs: Any) -> list[Any]:
        return overlay(plots.plot_prompt_attention(attention, np.asarray(WHITE), *args, **kwargs)).tolist()

    assert shown() == [[0.5, 0, 0], [0, 0, 0.5]]  # the mean of the chosen prompts
    assert shown(7) == [[0, 0, 0], [0, 0, 1]]
    assert shown("cls") == [[0, 0, 1], [0, 0, 0]]
    assert shown(7, block=2, index=1) == [[0, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"token": 0}, "token is 0. Expected one of 'prompts', 'cls', 4, 7"),
        ({"token": "CLS"}, "token is 'CLS'"),
        ({"block": 0}, r"block is 0. The prompts are in blocks \[2, 3\]"),
        ({"index": 2}, "index is 2. There are 2 images"),
        ({"image": np.zeros((4, 4))}, r"image has shape \(4, 4\), expected \(height, width, 3\)"),
    ],
)
def test_attention_that_is_not_there(attention, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(GatedPromptError, match=message):
        plots.plot_prompt_attention(**{"attention": attention, "image": WHITE, **arguments})


def test_a_model_without_cls(attention) -> None:
    no_cls = plots.PromptAttention(attention.blocks, attention.chosen, attention.prompts, cls=None)
    with pytest.raises(GatedPromptError, match=r"token is 'cls'. Expected one of 'prompts', 4, 7"):
        plots.plot_prompt_attention(no_cls, WHITE, "cls")


def test_a_loaded_adapter_is_enough(model, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, selected_adapters=["birds"])
    loaded = gated_prompt.load(vit(), tmp_path / "birds").eval()
    assert points(plots.plot_gates(loaded))["default"][1] == gated_prompt.gates(model).tolist()
    wanted = plots.prompt_attention(model, images())
    found = plots.prompt_attention(loaded, images())
    assert torch.equal(found.prompts, wanted.prompts)


def test_without_matplotlib_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from gated_prompt import plots\n"
        "try: plots.plot_training({'steps': [0], 'gates': [[0.1]], 'gated_blocks': [0]})\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "plots require matplotlib: pip install 'gated-prompt[viz]'"


def test_gates_of_zero_start_by_block() -> None:
    config = GatedPromptConfig(num_virtual_tokens=3, deep=True, zero_start=True, insert_at=1)
    model = get_peft_model(vit(), config)
    bank_of(model).gated_prompt_head_gates["default"].data.copy_(torch.tensor([[0.5, -0.5, 0.0, 0.0]] * 3))
    ax = plots.plot_gates({"learned": model})
    line, start = ax.get_lines()
    assert line.get_xdata().tolist() == [1, 2, 3]
    np.testing.assert_allclose(line.get_ydata(), [np.tanh(0.5) / 2] * 3, rtol=1e-6)
    assert list(start.get_ydata()) == [0, 0]
