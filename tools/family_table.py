"""The tables in docs/appendix/families_tested.md and docs/families.md, made from the cases that the tests prove.

    python tools/family_table.py

writes them anew. `test_family_table.py` compares.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("examples", "tests")]

from helpers.families import CASES, Case
from helpers.families_more import MORE
from helpers.refused import REFUSED, TIMM
from paper.markdown import fill

REFUSALS = Path(__file__).parents[1] / "docs" / "families.md"
PAGE = Path(__file__).parents[1] / "docs" / "appendix" / "families_tested.md"
HEADER = ["family", "class tested", "prefix tokens", "output", "what it depends on", "`pooling`", "trained head"]


def table() -> str:
    """One row for each case, in the order of `families.CASES`."""
    rows = [HEADER, ["---"] * len(HEADER)]
    family = None
    for case in CASES:
        rows.append(_row(case, "" if case.family == family else case.family))
        family = case.family
    return "\n".join(f"| {' | '.join(row)} |".replace("|  |", "| |") for row in rows) + "\n"


def more() -> str:
    """One row for each class of `families_more.MORE`."""
    rows = [["family", "class tested", "prefix tokens", "head", "trained"], ["---"] * 5]
    for case in MORE:
        rows.append([case.family, f"`{case.name}`", str(case.prefix), case.kind, _names(case.head)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def refusals() -> str:
    """One row for each model of `refused.REFUSED`, with the message that it gets here and now."""
    rows = [["what", "class", "refused at", "message"], ["---"] * 4]
    for case in REFUSED:
        name = "timm's layout, a stand-in" if case.name == TIMM else f"`{case.name}`"
        when = "`get_peft_model`" if case.inputs is None else "the first forward"
        rows.append([case.what, name, when, case.message().replace("|", "\\|")])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _row(case: Case, family: str) -> list[str]:
    name = f"`{case.name}`" if case.config else "timm's layout, a stand-in"
    notes = [case.note] if case.note else []
    if case.since > (4, 57):
        notes.append(f"transformers {case.since[0]}.{case.since[1]} or later")
    depends = _tokens(case.reads)
    if case.read_before:
        (major, minor), reads = case.read_before
        depends += f" (before transformers {major}.{minor}: {_tokens(reads)})"
    trained = _names(case.head)
    if case.head_before:
        (major, minor), head = case.head_before
        trained += f" (before transformers {major}.{minor}: {_names(head)})"
    return [
        family,
        name + (f" ({', '.join(notes)})" if notes else ""),
        str(case.prefix),
        f"`{case.read_from}`",
        depends,
        "yes" if case.pools else "refused",
        trained,
    ]


def _names(head: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in head) or "-"


def _tokens(reads: tuple[str, ...]) -> str:
    return ", ".join({"all": "all tokens"}.get(part, part.replace("slot", "token")) for part in reads)


def new_page(page: str) -> str:
    """docs/appendix/families_tested.md with its tables regenerated."""
    return fill(page, {"families": table(), "more families": more()})


def new_refusals(page: str) -> str:
    """docs/families.md with its table regenerated."""
    return fill(page, {"refused": refusals()})


if __name__ == "__main__":
    PAGE.write_text(new_page(PAGE.read_text()))
    REFUSALS.write_text(new_refusals(REFUSALS.read_text()))
