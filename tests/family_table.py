"""The table in docs/families.md, made from the cases that `test_families.py` proves.

    python tests/family_table.py

writes it anew; `test_family_table.py` compares.
"""

from pathlib import Path

from families import CASES, Case

PAGE = Path(__file__).parents[1] / "docs" / "families.md"
START, END = "<!-- table: python tests/family_table.py -->\n", "<!-- end of table -->\n"
HEADER = ["family", "class tested", "prefix tokens", "output", "what it depends on", "`pooling`", "trained head"]


def table() -> str:
    """One row for each case, in the order of `families.CASES`."""
    rows = [HEADER, ["---"] * len(HEADER)]
    family = None
    for case in CASES:
        rows.append(_row(case, "" if case.family == family else case.family))
        family = case.family
    return "\n".join(f"| {' | '.join(row)} |".replace("|  |", "| |") for row in rows) + "\n"


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


def page_with_table(page: str) -> str:
    """The text of the page with the table between its marks replaced."""
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page_with_table(PAGE.read_text()))
