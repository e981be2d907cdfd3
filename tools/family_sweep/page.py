# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The tables of docs/families.md, from the records of the sweep."""

import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))

from paper.markdown import fill

PAGE, RESULTS = ROOT / "docs" / "families.md", Path(__file__).with_name("results.json")
REASONS = {  # a part of the message, and what it is about
    "has stages of blocks": "stages or windows (hierarchical)",
    "no list of two or more identical": "no list of equal blocks with a query projection",
    "but none read patches": "blocks read no patches (text, speech, features of a convolutional network)",
    "several lists of transformer blocks": "several vision towers, works with `target_modules`",
    "outside of the attention": "convolutions between tokens",
    "earlier ones only": "causal attention",
    "relative position bias": "a table of position biases in the attention",
    "a table for a fixed number": "position tables between the blocks",
    "derives positions": "positions by the index of a token",
    "windows, which its blocks": "windows folded into the batch",
    "several images packed": "several images packed into one sequence",
    "expected (batch, tokens, width)": "no batch axis, or maps",
    "runs its blocks itself": "a backbone without an encoder",
    "AttentionInterface": "attention outside of `AttentionInterface`",
}
Records = dict[str, dict[str, Any]]


def new_page(page: str, results: dict[str, Any]) -> str:
    """docs/families.md with its tables regenerated."""
    records: Records = results["records"]
    tables = {"sweep": _summary(results), "works": works(records), "reasons": reasons(records)}
    return fill(page, tables)


def write() -> None:
    """Write the page from the committed results."""
    PAGE.write_text(new_page(PAGE.read_text(), json.loads(RESULTS.read_text())))


def _summary(results: dict[str, Any]) -> str:
    counts = Counter(record["status"] for record in results["records"].values())
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return (
        f"Of {counts.total()} classes and models ({versions}), {counts['works']} work, {counts['refused']} are "
        f"refused with a reason, {counts['faulty']} are accepted although a check fails, and {counts['not run']} were "
        "not run: the sweep could not make them small, or has no inputs for them.\n"
    )


def works(records: Records) -> str:
    """One row for each family: its classes that work, and what they have in common."""
    rows = [["family", "classes", "prefix tokens", "zero start"], ["---"] * 4]
    for family, members in _by_family(records, "works").items():
        classes = ", ".join(f"`{name.removeprefix('timm/')}`{_head(records[name])}" for name in members)
        prefix = sorted({records[name]["prefix"] for name in members})
        zero = {records[name]["zero_start"] for name in members}
        rows.append([family, classes, _list(prefix), "yes" if zero == {True} else "some" if True in zero else "no"])
    faulty = _by_family(records, "faulty")
    for family, members in faulty.items():
        rows.append(
            [family, ", ".join(f"`{n}`: {'; '.join(records[n]['faults'])}" for n in members), "", "a check fails"]
        )
    return _table(rows)


def reasons(records: Records) -> str:
    """One row for each reason, with the families that are refused for it."""
    rows = [["reason", "families"], ["---"] * 2]
    for part, words in REASONS.items():
        hit = {n: r for n, r in records.items() if r["status"] == "refused" and _reason(r["reason"]) == part}
        if hit:
            rows.append([words, ", ".join(_by_family(hit, "refused", timm_names=True))])
    other = {n: r for n, r in records.items() if r["status"] == "refused" and _reason(r["reason"]) is None}
    if other:
        rows.append(["other", ", ".join(_by_family(other, "refused", timm_names=True))])
    return _table(rows)


def _reason(message: str) -> str | None:
    return next((part for part in REASONS if part in message), None)


def _by_family(records: Records, status: str, timm_names: bool = False) -> dict[str, list[str]]:
    families: dict[str, list[str]] = {}
    for name, record in sorted(records.items(), key=lambda pair: (pair[1]["family"] == "timm", pair[1]["family"])):
        if record["status"] == status:
            family = name if timm_names and record["family"] == "timm" else record["family"]
            families.setdefault(family, []).append(name)
    return families


def _head(record: dict[str, Any]) -> str:
    return f" (trains {', '.join(f'`{path}`' for path in record['head'])})" if record["head"] else ""


def _list(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def _table(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"
