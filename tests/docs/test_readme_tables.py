"""The README and the pages show what is committed; parts of pages are replaced where they stand."""

import runpy
from pathlib import Path
from xml.etree import ElementTree

import pytest

import race_page
from gated_prompt import GatedPromptError
from paper.markdown import fill
from readme_tables import DOCS, FIGURES, README, ROOT, new_pages
from serving_load import tables


def test_the_pages_show_what_is_committed() -> None:
    for page, text in new_pages().items():
        assert page.read_text() == text, f"{page.name} is old. Regenerate it: python tools/readme_tables.py"


def test_the_picture_of_the_readme_says_what_was_measured() -> None:
    """Memory and time with 64 tasks, in the text beside the picture."""
    results = tables.read(ROOT / "examples/serving_load/results")["small"]
    one, many, full = (tables.megabytes(results, *cell) for cell in (("gated", 1), ("gated", 64), ("full", 64)))
    assert one and many and full
    text = README.read_text()
    assert f"needs {100 * (many / one - 1):.0f} % more memory" in text
    assert f"needs **{100 * (many / one - 1):.0f} % more memory**" in words("index")
    assert f"takes {many / 1000:.0f} GB, one of full models {full / 1000:.1f} GB" in text
    assert abs((tables.ratio(results, "gated", 8) or 0) - 1) < 0.05


def words(page: str) -> str:
    """The text of a page on one line."""
    return " ".join((DOCS / f"{page}.md").read_text().split())


def test_the_pages_repeat_the_probes_that_were_measured() -> None:
    rows = race_page.read()
    last, best, chosen = (
        race_page.percent(race_page.of_task(rows[f"probe of the {name}"], "eurosat")).split()[0]
        for name in ("last block", "best block", "block set")
    )
    assert f"from {last} % to **{chosen} %**" in words("index")
    assert f"has {chosen} % on EuroSAT, that of the best block {best} %" in words("benchmark")
    assert f"{chosen} % instead of {best} % on EuroSAT" in words("which_method")


@pytest.mark.parametrize("script", FIGURES, ids=lambda script: script.stem)
def test_the_figures_show_what_is_committed(script: Path) -> None:
    for file, svg in runpy.run_path(str(script))["pictures"]().items():
        assert file.read_text() == svg, f"{file.name} is old: python tools/figures/{script.name}"
        ElementTree.fromstring(svg)


def test_a_part_is_replaced_and_the_rest_kept() -> None:
    page = "a\n<!-- generated: x -->\nold\n<!-- end -->\nb\n<!-- generated: y -->\nkept\n<!-- end -->\n"
    wanted = "a\n<!-- generated: x -->\n\n| \\1 |\n\n<!-- end -->\nb\n<!-- generated: y -->\nkept\n<!-- end -->\n"
    assert fill(page, {"x": "| \\1 |\n"}) == wanted
    assert fill(wanted, {"x": "| \\1 |"}) == wanted


@pytest.mark.parametrize("page", ["no place", "<!-- generated: x -->\n<!-- end -->\n" * 2])
def test_a_part_without_its_place_is_refused(page: str) -> None:
    with pytest.raises(GatedPromptError, match="Expected one"):
        fill(page, {"x": "text"})
