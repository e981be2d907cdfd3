# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The prose linter finds this project's made-up terms in sentences, and leaves code, links and tables alone."""

import sys
from pathlib import Path

import pytest

from helpers.pages import ROOT

pytest.importorskip("proselint", reason="proselint is not installed; the extra [dev] has it")
sys.path.append(str(ROOT / "docs"))
from prose import PAGES, comments, docstrings, findings, messages, semicolons, too_many_semicolons


def found(tmp_path: Path, text: str) -> list[str]:
    (tmp_path / "page.md").write_text(text)
    return [line.removeprefix(f"{tmp_path}/") for line in findings([tmp_path / "page.md"])]


@pytest.mark.parametrize(
    "phrase",
    ["whole or not at all", "a process and step", "by itself", "cannot be told", "is not foreseen", "as it says"],
)
def test_a_made_up_term_is_an_error_with_its_place(tmp_path: Path, phrase: str) -> None:
    (line,) = found(tmp_path, f"# Title\n\nA file is written {phrase} here.\n")
    assert line.startswith("page.md:3:") and "house: Write " in line and f"'{phrase}'" in line


def test_proselints_own_checks_run(tmp_path: Path) -> None:
    assert any("lexical_illusions" in line for line in found(tmp_path, "It reads the the file.\n"))


def test_code_links_and_generated_tables_are_left_out(tmp_path: Path) -> None:
    page = (
        "`by itself` [x](by%20itself)\n\n```python\nby itself\n```\n<!-- generated: t -->\nby itself\n<!-- end -->\n"
    )
    assert found(tmp_path, page + '"by itself"\n') == []


def test_the_pages_pass() -> None:
    assert findings(PAGES) == []


def test_semicolons_are_counted_in_prose_alone() -> None:
    source = (
        'def f():\n    """One; two; three `a; b` words."""\n    a = "not; read"  # four; five six seven\n'
        '    raise ValueError(f"x is {x}; give 1, 2 or 3; {a}")\n'
    )
    assert semicolons(docstrings(source)) == 1000 * 2 / 6
    assert semicolons(comments(source)) == 1000 * 1 / 5
    assert semicolons(messages(source)) == 1000 * 2 / 9


def test_there_are_few_semicolons() -> None:
    assert too_many_semicolons() == []
