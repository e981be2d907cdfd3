"""docs/reproducing.md repeats numbers of data files; they must be the same."""

from pathlib import Path

import pytest

from paper import grids
from paper.presets import TABLE_5

PAGE = (Path(__file__).parents[2] / "docs" / "reproducing.md").read_text()
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


def test_every_table_has_its_command() -> None:
    for table in grids.TABLES:
        assert f"--table {table}" in PAGE, table
