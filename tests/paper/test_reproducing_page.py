"""docs/reproducing.md and docs/appendix/paper_tables.md repeat numbers of data files, which must be the same."""

import re
from pathlib import Path

import pytest

from paper import grids
from paper.presets import TABLE_5

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "reproducing.md").read_text() + (DOCS / "appendix" / "paper_tables.md").read_text()
LINES = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line.startswith("| ")]


@pytest.mark.parametrize("table", [name for name in grids.TABLES if grids.published()["tables"][name]])
def test_published_numbers(table) -> None:
    for entry in grids.published()["tables"][table]:
        numbers = [f"{value:.2f}" for value in entry["values"].values()]
        name = {"mae": "MAE", "moco": "MoCo v3"}[entry["backbone"]]
        found = [line for line in LINES if line[0].split(",")[0] == name and line[1] == entry["row"]]
        assert any(line[2 : 2 + len(numbers)] == numbers for line in found), entry


@pytest.mark.parametrize("task", TABLE_5)
def test_settings_of_each_task(task) -> None:
    def text(batch: int, prompts: int, rate: float, prior: float) -> str:
        return f"{batch}, {prompts}, {rate:g}, {-prior:g}"

    assert [task, *(text(*settings) for settings in TABLE_5[task])] in LINES


def test_every_table_has_its_command_and_its_number_of_runs() -> None:
    said = dict(re.findall(r"(\w+) (\d+)(?= \(|,|\.)", re.sub(r"\s+", " ", PAGE.split("Runs: ")[1].split("Hours")[0])))
    for name, table in grids.TABLES.items():
        assert f"--table {name}" in PAGE, name
        rows = grids.choose_rows(name, "mae", None)
        cells = [(row, task) for row in rows for task in table.tasks]
        common = grids.Common("backbone", "mae")
        searched = sum(len(grids.search_runs(common, *cell, cell[0].search)) for cell in cells) if table.search else 0
        assert said[name] == str(searched + len(cells) * len(grids.SEEDS)), name
