"""docs/families.md shows what `families.py` states, which `test_families.py` proves."""

import difflib

import pytest

from family_table import PAGE, new_page
from helpers.families import CASES


def test_the_page_shows_the_cases_that_are_tested() -> None:
    page = PAGE.read_text()
    wanted = new_page(page)
    if page != wanted:
        changes = difflib.unified_diff(page.splitlines(), wanted.splitlines(), "docs/families.md", "the cases", n=0)
        pytest.fail("\n".join(["docs/families.md is old; write it anew: python tests/family_table.py", *changes]))


def test_every_case_is_told_apart() -> None:
    assert len({case.id for case in CASES}) == len(CASES)
