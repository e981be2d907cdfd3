"""The report's charts against their values, what a page shows of a training, and its pictures in docs/."""

import math
import re
from html import unescape
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

import report_pictures
from gated_prompt.finetune.figures import Pictures, draw_all, write_report
from gated_prompt.finetune.image_set import SINGLE_LABEL
from gated_prompt.finetune.svg import HEIGHT, WIDTH, Line, line_chart, percent, plain, ticks


def places(chart: str, colour: int) -> list[tuple[float, float]]:
    """Where the markers of a line stand inside its plot."""
    plot = chart[chart.index("<svg viewBox") :]
    plot = plot[plot.index('role="img"') :] if 'role="img"' in plot else plot
    found = re.findall(rf'class="mark s{colour}" d="[^"]+" transform="translate\(([\d.]+) ([\d.]+)\)', plot)
    return [(float(x), float(y)) for x, y in found]


def test_points_stand_where_their_values_are() -> None:
    """The plot is linear in both directions, and no marker leaves it."""
    values = [0.2, 0.5, 0.4, 0.9]
    chart = line_chart("accuracy", "block", [Line("probe", range(4), values), Line("star", [2], [0.7])], percent)
    found = [*places(chart, 0), *places(chart, 1)]
    slopes = [(found[i][1] - found[0][1]) / (value - 0.2) for i, value in enumerate([*values, 0.7]) if i]
    assert slopes == pytest.approx([slopes[0]] * 4, abs=1) and slopes[0] < 0  # large values are further up
    steps = [after[0] - before[0] for before, after in pairwise(found[:4])]
    assert steps == pytest.approx([steps[0]] * 3, abs=0.2) and found[4][0] == found[2][0]
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in found)
    assert "block 3: 90.0\N{NO-BREAK SPACE}%" in chart and "probe from 20.0" in chart


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.31, 0.33), (-5.0, 120.0), (0.5, 0.5), (1e-5, 3e-5)])
def test_ticks_enclose_the_values_and_are_round(low: float, high: float) -> None:
    found = ticks(low, high, 5)
    assert found[0] <= low and found[-1] >= high and 2 <= len(found) <= 8
    step = found[1] - found[0]
    assert step / 10 ** math.floor(math.log10(step * 1.0001)) == pytest.approx(
        round(step / 10 ** math.floor(math.log10(step * 1.0001)))
    )


def test_values_that_are_not_finite_are_left_out_and_names_are_escaped() -> None:
    chart = line_chart("loss", "epoch", [Line("<b>", range(3), [1.0, math.nan, 2.0])], plain)
    assert len(places(chart, 0)) == 2 and "nan" not in chart and "<b></" not in chart and "&lt;b&gt;" in chart


def results(kept: bool) -> dict:
    """Those of a run with one training; `kept`: it is what to use."""
    curve = [{"epoch": epoch, "accuracy": 0.5 + 0.1 * epoch, "loss": 1 - 0.1 * epoch} for epoch in range(3)]
    row = {
        "text": "70.0 %",
        "measures": {"accuracy": 0.7, "macro_f1": 0.6543},
        "trained_parameters": 5,
        "seconds": 1.0,
    }
    return {
        "sentence": "Use it.",
        "complete": True,
        "chosen": "zero_start" if kept else "linear_probe",
        "measure": "accuracy",
        "problem": SINGLE_LABEL,
        "names": ["蝴蝶", "<cat>"],
        "data": {"train": {"count": 8}, "validation": {"count": 2}, "test": None},
        "estimate": {"accuracy": 0.9312, "interval": [0.9, 0.95], "images": 10, "out_of_fold": True},
        "block": 1,
        "read_blocks": [1],
        "blocks": [
            {"block": i, "nearest_neighbours": 0.3, "linear_probe": 0.5, "neighbours_text": "", "probe_text": ""}
            for i in range(2)
        ],
        "block_sets": [],
        "comparison": [
            {**row, "name": "linear probe", "chosen": not kept},
            {**row, "name": "zero_start, seed 0", "method": "zero_start", "curve": curve, "chosen": kept},
        ],
        "rates": {},
        "per_class": {"蝴蝶": {"accuracy": 1.0, "pictures": 5}, "<cat>": {"accuracy": 0.4, "pictures": 5}},
        "confusion": [[5, 0], [3, 2]],
        "test": None,
        "skipped": {},
        "contradictions": [],
        "settings": {
            "train_dir": "photos",
            "train_file": None,
            "dataset": None,
            "backbone": "some/vit",
            "lora_r": None,
        },
        "versions": {"python": "3"},
        "device": "CPU",
    }


@pytest.mark.parametrize("kept", [True, False])
def test_a_page_shows_curves_only_of_what_is_kept(kept: bool, tmp_path: Path) -> None:
    found = results(kept)
    write_report(
        tmp_path / "r.html", found, draw_all(found, None), Pictures([], [], [], True), tmp_path / "my run" / "a"
    )
    page = (tmp_path / "r.html").read_text()
    assert ("Learning curves" in page, "Training was not kept" in page) == (kept, not kept)
    assert page.index("93.1\N{NO-BREAK SPACE}%") < page.index("Comparison")  # what to expect comes first
    assert "65.4\N{NO-BREAK SPACE}%" in page and "0.654" not in page  # measures are written one way
    assert "蝴蝶" in page and "<cat>" not in page
    assert "lora_r" not in page and "<td>None" not in page
    assert unescape(page).count(f"'{tmp_path}/my run/a'") == 2 and f"--adapters {tmp_path} " not in page
    assert "prefers-color-scheme: dark" in page
    assert all(re.search(r'alt="[^"]+"', tag) for tag in re.findall("<img [^>]+>", page))
    assert all("aria-" in tag for tag in re.findall("<svg [^>]+>", page) if "key" not in tag)


@pytest.mark.parametrize("name", report_pictures.SHOTS)
def test_the_pictures_in_docs_show_the_page_as_it_is(name: str) -> None:
    picture = Image.open(report_pictures.IMAGES / name)
    assert picture.info["sources"] == report_pictures.sources_hash(), "python tools/report_pictures.py"
    assert picture.size == report_pictures.SHOTS[name][:2]
