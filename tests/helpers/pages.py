"""The pages of docs/ and the README, and their blocks of code."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


_FILES = [page for page in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in page.parts]
PAGES = {path.name: path for path in (ROOT / "README.md", *_FILES)}


pages = pytest.mark.parametrize("name", PAGES)


def blocks(name: str, *languages: str) -> list[tuple[int, str]]:
    """Line number and text of every fenced block of a page in one of these languages."""
    text = PAGES[name].read_text()
    found = re.finditer(r"^```([\w{}]+)[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [(text[: m.start(2)].count("\n"), m[2]) for m in found if m[1] in languages]
