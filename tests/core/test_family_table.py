"""The pages on families show what the cases state, which the tests of the families prove."""

import difflib
from collections.abc import Callable
from pathlib import Path

import pytest

from family_table import PAGE, REFUSALS, new_page, new_refusals
from helpers.families import CASES
from helpers.refused import REFUSED


@pytest.mark.parametrize(("path", "new"), [(PAGE, new_page), (REFUSALS, new_refusals)], ids=["families", "refused"])
def test_the_page_shows_the_cases_that_are_tested(path: Path, new: Callable[[str], str]) -> None:
    if new is new_refusals and not all(case.here for case in REFUSED):
        pytest.skip(
            "docs/families.md holds the messages of the newest transformers. This one lacks some of the classes"
        )
    page = path.read_text()
    wanted = new(page)
    if page != wanted:
        name = path.name
        changes = difflib.unified_diff(page.splitlines(), wanted.splitlines(), name, "the cases", n=0)
        pytest.fail("\n".join([f"{name} is old. Regenerate it: python tools/family_table.py", *changes]))


def test_every_case_is_told_apart() -> None:
    assert len({case.id for case in CASES}) == len(CASES)
