"""Charts of the pages: where points, names and error bars lie, and what is drawn while results are missing."""

import copy
import re
from itertools import pairwise
from typing import Any

import pytest

import charts
import study_results
from plotting import FOOT, HEIGHT, LINE, Axes, Panel, lines


def placed(svg: str, words: str) -> float:
    """The height of these words."""
    (y,) = re.findall(rf'<text x="[\d.]+" y="([\d.]+)"[^>]*>{words}</text>', svg)
    return float(y)


def test_positions_stand_at_equal_distances_also_for_lines_that_lack_some() -> None:
    axes = Axes(Panel({"all": {1: 3.0, 4: 5.0, 16: 4.0, 64: 6.0}, "two": {1: 2.0, 64: 2.0}}, 1), 0, 328)
    assert [axes.across(x) for x in (1, 4, 16, 64)] == [14, 114, 214, 314]
    assert any(f'd="M14 {axes.up(2):g} L314 {axes.up(2):g}"' in part for part in axes.lines())


def test_the_vertical_axis_holds_error_bars_the_level_and_what_it_must_reach() -> None:
    panel = Panel({"a": {0: 5.0, 1: 7.0}}, 2, spread={"a": {1: 1.5}})
    assert Axes(panel, 0, 100).limits == (2, 5)  # from 4 to 10: the bar ends at 8.5
    assert Axes(Panel(panel.series, 2, level=("start", 11.0)), 0, 100).limits == (2, 6)
    assert Axes(Panel(panel.series, 2, reach=[0]), 0, 100).limits == (0, 4)
    axes = Axes(panel, 0, 100)
    assert any(f"M{axes.across(1):g} {axes.up(5.5):g} V{axes.up(8.5):g}" in part for part in axes.lines())


@pytest.mark.parametrize("ends", [[0.0, 0.0, 0.1, 0.2], [9.8, 10.0, 10.0, 9.9], [5.0, 5.0, 0.0, 10.0]])
def test_names_do_not_overlap_and_stay_beside_the_panel(ends: list[float]) -> None:
    series = {f"line {count}": {0: 0.0, 1: 10.0, 2: end} for count, end in enumerate(ends)}
    svg = lines("title", "along", "up", [Panel(series, 1, level=("level", ends[0]))])
    heights = sorted(placed(svg, name) for name in [*series, "level"])
    assert min(below - above for above, below in pairwise(heights)) >= LINE
    assert heights[0] > 0
    assert heights[-1] <= HEIGHT - FOOT + 4


def test_curves_are_means_over_the_seeds_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    found = copy.deepcopy(study_results.read("real"))
    for run in list(found["eurosat"]):
        if run["kind"] == "run" and run["epochs"] == 10:
            if run["row"] == "zero_start_best" or run["seed"] == 1:
                found["eurosat"].remove(run)
            elif run["row"] == "lora8_start_best":
                run["curve"] = [0.25 if run["seed"] == 0 else 0.75] * 11
    drawn: list[Any] = []
    monkeypatch.setattr(study_results, "read", lambda study: found)
    monkeypatch.setattr(charts, "lines", lambda *given: drawn.append(given[-1]))
    charts.accuracy_by_epoch()
    ((panel,),) = drawn
    assert list(panel.series) == ["gated, random start", 'gated, "sample" start', "LoRA, rank 8"]
    assert panel.series["LoRA, rank 8"] == dict.fromkeys(range(11), 50.0)
