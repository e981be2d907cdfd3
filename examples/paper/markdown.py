# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""A table's summary as Markdown with the notes needed to read it, and pages whose generated parts scripts write.

A generated part stands between `<!-- generated: NAME -->` and `<!-- end -->`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from gated_prompt import GatedPromptError

from .summary import AVERAGES, MEAN_OF_GROUPS


def to_markdown(summary: Mapping[str, Any]) -> str:
    """The table, the verdicts, and below them the notes needed to read both."""
    rows = summary["rows"]
    seeds = ", ".join(map(str, summary["seeds"]))
    notes = [f"Mean ± standard deviation over the seeds {seeds}; one run each, last epoch."]
    if not summary["complete"]:
        notes.append("**This table is incomplete: some of its runs have not been made.**")
    for row, content in rows.items():
        if content["mean_of_those_there"] is not None and content["missing"]:
            notes.append(
                f"Missing in {row}: {', '.join(content['missing'])}. The mean of the others is "
                f"{content['mean_of_those_there']:.2f} and compares with no published mean."
            )
    notes += [f"Diverged, and not counted: {name}." for name in summary["diverged"]]
    if any(MEAN_OF_GROUPS in content["scores"] for content in rows.values()):
        notes.append(
            "Two averages of VTAB-1k are in use: the mean of the 19 tasks, which is the paper's, and the mean of the "
            "three groups."
        )
    notes += [f"Not the benchmark's own images (inexact): {note}" for note in summary["inexact_data"]]
    notes += [f"The benchmark's images, encoded with loss (lossy): {note}" for note in summary["lossy_data"]]
    if summary["exact_data"]:
        notes.append(f"The benchmark's own images (exact): {len(summary['exact_data'])} splits.")
    sources = dict.fromkeys(content["published_source"] for content in rows.values() if content["published_source"])
    if sources:
        notes.append(f"In brackets: published numbers ({'; '.join(sources)}). {summary['published_in']}")
    for row, content in rows.items():
        rates = ", ".join(f"{task} {rate:g}" for task, rate in content["learning_rates"].items())
        if rates:
            notes.append(f"Learning rates of {row}: {rates}.")
    settings = summary["settings"]
    notes.append(f"Backbone: {settings['backbone']} ({summary['backbone_kind']}).")
    notes.append(
        f"Made on {', '.join(summary['devices']) or 'no device yet'} with:\n\n```sh\n{settings['command']}\n```"
    )
    tables = [_table(rows), _verdicts(rows), _best_epochs(rows), _searches(rows)]
    return f"# {summary['title']}\n\n" + "\n".join(text for text in tables if text) + "\n" + "\n\n".join(notes) + "\n"


def lines(*cells: Sequence[str]) -> str:
    """A Markdown table; the first line is its head."""
    head, *rest = cells
    return "".join("| " + " | ".join(line) + " |\n" for line in (head, ["---"] * len(head), *rest))


def fill(page: str, parts: Mapping[str, str]) -> str:
    """The page with these parts replaced, and everything else unchanged.

    Raises:
        GatedPromptError: a part has not exactly one place in the page.
    """
    for name, text in parts.items():
        start, end = f"<!-- generated: {name} -->\n", "<!-- end -->"
        if page.count(start) != 1:
            raise GatedPromptError(f"{page.count(start)} places for the generated part {name!r}. Expected one.")
        before, _, rest = page.partition(start)
        _, _, after = rest.partition(end)
        page = f"{before}{start}\n{text.strip()}\n\n{end}{after}"
    return page


def _table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """One line for each task and average and one column for each method. Turned where there are more methods."""
    names = list(next(iter(rows.values()))["scores"])
    cells = [["", *rows]]
    for line in names:
        texts = []
        for content in rows.values():
            beside = f" [{content['published'][line]:.2f}]" if line in content["published"] else ""
            texts.append(content["scores"][line]["text"] + beside)
        cells.append([line.replace("_", " ") if line in AVERAGES else line, *texts])
    return lines(*(list(turned) for turned in zip(*cells, strict=True)) if len(rows) > len(names) else cells)


def _verdicts(rows: Mapping[str, Mapping[str, Any]]) -> str:
    cells = [
        [row, name.replace("_", " "), *verdict["text"]]
        for row, content in rows.items()
        for name, verdict in content["verdicts"].items()
    ]
    return (
        lines(["row", "column", "published", "measured", "difference", "tolerance", "verdict"], *cells)
        if cells
        else ""
    )


def _best_epochs(rows: Mapping[str, Mapping[str, Any]]) -> str:
    cells = [
        [row, name.replace("_", " "), content["scores"][name]["text"], cell["text"]]
        for row, content in rows.items()
        for name, cell in content["best_epoch"].items()
    ]
    return lines(["row", "column", "last epoch", "best epoch on validation"], *cells) if cells else ""


def _searches(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Validation accuracy of every setting that was tried. The winner in bold."""
    cells = []
    for row, content in rows.items():
        for task, search in content["search"].items():
            texts = []
            for one in search["tried"]:
                decay = f" (decay {one['weight_decay']:g})" if one["weight_decay"] else ""
                score = "diverged" if one["diverged"] else "not run" if one["validation"] is None else None
                text = f"{one['learning_rate']:g}{decay}: {score or format(one['validation'], '.2f')}"
                choice = {name: one[name] for name in ("learning_rate", "weight_decay")}
                texts.append(f"**{text}**" if choice == search["best"] else text)
            cells.append([row, task, ", ".join(texts), "at the edge of the grid" if search["at_edge"] else ""])
    return lines(["row", "task", "rates and validation accuracy", ""], *cells) if cells else ""
