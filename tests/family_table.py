"""The table in docs/families.md, made from the cases that `test_families.py` proves.

    python tests/family_table.py

writes it anew; `test_family_table.py` compares.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from families import CASES, Case

from recipe.generated import fill

PAGE = Path(__file__).parents[1] / "docs" / "families.md"
HEADER = ["family", "class tested", "prefix tokens", "output", "what it depends on", "`pooling`", "trained head"]


def table() -> str:
    """One row for each case, in the order of `families.CASES`."""
    rows = [HEADER, ["---"] * len(HEADER)]
    family = None
    for case in CASES:
        rows.append(_row(case, "" if case.family == family else case.family))
        family = case.family
    return "\n".join(f"| {' | '.join(row)} |".replace("|  |", "| |") for row in rows) + "\n"


def summary() -> str:
    """One row for each family, for the README."""
    rows = [["family", "prefix tokens", "classes tested"], ["---"] * 3]
    for family in dict.fromkeys(case.family for case in CASES):
        cases = [case for case in CASES if case.family == family]
        names = dict.fromkeys(f"`{case.name}`" if case.config else "timm's layout, a stand-in" for case in cases)
        rows.append([family, ", ".join(dict.fromkeys(str(case.prefix) for case in cases)), ", ".join(names)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _row(case: Case, family: str) -> list[str]:
    name = f"`{case.name}`" if case.config else "timm's layout, a stand-in"
    notes = [case.note] if case.note else []
    if case.since > (4, 57):
        notes.append(f"transformers {case.since[0]}.{case.since[1]} or later")
    depends = _tokens(case.reads)
    if case.read_before:
        (major, minor), reads = case.read_before
        depends += f"; before transformers {major}.{minor}: {_tokens(reads)}"
    return [
        family,
        name + (f" ({', '.join(notes)})" if notes else ""),
        str(case.prefix),
        f"`{case.read_from}`",
        depends,
        "yes" if case.pools else "refused",
        ", ".join(f"`{head}`" for head in case.head) or "-",
    ]


def _tokens(reads: tuple[str, ...]) -> str:
    return ", ".join({"all": "all tokens"}.get(part, part.replace("slot", "token")) for part in reads)


def new_page(page: str) -> str:
    """docs/families.md with its table made anew."""
    return fill(page, {"families": table()})


if __name__ == "__main__":
    PAGE.write_text(new_page(PAGE.read_text()))
