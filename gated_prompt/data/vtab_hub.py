# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""VTAB-1k splits from Hub data sets: exact if the rows can be identified, otherwise marked as VTAB-like."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from ..images import LabelledImages, Provenance
from .hub import HubImages, HubTable, open_table
from .vtab_hub_sources import HUB_SOURCES, HubSource
from .vtab_splits import split_keys
from .vtab_tasks import Slice, VtabTask, check_split, find_task

Row = tuple[int, int]  # table number, row number


@dataclass(frozen=True)
class _Chosen:
    rows: list[Row]
    exact: bool
    note: str


def load_hub(task: str, split: str, *, path: str | Path | None = None, revision: str | None = None) -> LabelledImages:
    """Load one split of one task from the Hub.

    Args:
        task: Task name.
        split: "train800", "val200", "train800val200" or "test".
        path: Local copy of the repository to read instead of the Hub.
        revision: Commit of the repository. None means the pinned one, or the newest if none is pinned.

    Raises:
        DataError: The repository cannot be read, or has unexpected columns, row counts or classes.

    Warns:
        InexactDataWarning: The images are only VTAB-like. `provenance.note` says why.
    """
    spec = find_task(task)
    check_split(split)
    source = HUB_SOURCES[task]
    tables: list[HubTable] = []
    parts: dict[str, list[int]] = {}  # original split -> numbers of its tables
    for original, hub_splits in source.splits.items():
        parts[original] = []
        for hub_split in hub_splits:
            table = open_table(
                source.repo, hub_split, config=source.config, revision=revision or source.revision, path=path
            )
            table.require([source.image, *source.label, *(column.split(".")[0] for column in source.key)])
            parts[original].append(len(tables))
            tables.append(table)
    _check_counts(spec, source, tables, parts)
    names = _class_names(spec, source, tables[0])
    chosen = _choose(spec, source, tables, parts, split)
    provenance = Provenance(
        task,
        split,
        tables[0].source,
        tables[0].revision,
        chosen.exact,
        chosen.note,
        len(chosen.rows),
        spec.size_of(split),
    )
    return LabelledImages(
        HubImages(tables, source.image, chosen.rows, source.finish, upright=False),
        _labels(source, tables, chosen.rows),
        num_classes=spec.num_classes,
        class_names=names,
        provenance=provenance,
    )


def _check_counts(spec: VtabTask, source: HubSource, tables: list[HubTable], parts: Mapping[str, list[int]]) -> None:
    for original, numbers in parts.items():
        count = sum(len(tables[number]) for number in numbers)
        if count != spec.sizes[original]:
            raise DataError(
                f"{tables[0].source} has {count} rows in {' + '.join(source.splits[original])}, expected"
                f" {spec.sizes[original]} ({spec.name}, original split {original!r}). It splits the data"
                " differently, or its revision has changed."
            )


def _class_names(spec: VtabTask, source: HubSource, table: HubTable) -> list[str] | None:
    if source.to_label is not int or len(source.label) > 1:
        return None  # derived classes have no names in the data set
    names = table.class_names(source.label[0])
    if names is not None and len(names) != spec.num_classes:
        raise DataError(
            f"{table.source}: column {source.label[0]!r} has {len(names)} classes, expected {spec.num_classes}."
        )
    return names


def _choose(
    spec: VtabTask, source: HubSource, tables: list[HubTable], parts: Mapping[str, list[int]], split: str
) -> _Chosen:
    rows = {
        original: [(n, row) for n in numbers for row in range(len(tables[n]))] for original, numbers in parts.items()
    }
    reason = "the repository has neither original file names nor a verifiable original order"
    keys: dict[str, list[str]] | None = None
    if source.key:
        keys = {
            original: [str(key) for n in numbers for key in _keys(source, tables[n])]
            for original, numbers in parts.items()
        }
    elif source.in_original_order and spec.key_of_row:
        if all(source.in_original_order(tables[numbers[0]], original) for original, numbers in parts.items()):
            keys = {name: [spec.key_of_row[name].format(i) for i in range(len(found))] for name, found in rows.items()}
        else:
            reason = "its rows are not in the original order"
    if keys is not None:
        try:
            splits = split_keys(spec.name, keys)
        except DataError as error:
            reason = f"its keys are not the original ones ({error})"
        else:
            wanted = _parts_of(spec, split)
            by_key = {
                name: dict(zip(keys[name], rows[name], strict=True)) for name in {part.split for _, part in wanted}
            }
            picked = [by_key[part.split][key] for name, part in wanted for key in splits[name]]
            return _Chosen(picked, True, "VTAB's own images, identified by their original keys.")
    picked = [row for _, part in _parts_of(spec, split) for row in _slice(part, rows)]
    if split == "test" and spec.test.start == 0 and not source.key and not source.in_original_order:
        return _Chosen(picked, True, "VTAB tests on the whole original test split. Only the row order differs.")
    return _Chosen(picked, False, f"VTAB-like: the slices were taken in row order, since {reason}.")


def _parts_of(spec: VtabTask, split: str) -> list[tuple[str, Slice]]:
    names = ["train800", "val200"] if split == "train800val200" else [split]
    return [(name, {"train800": spec.train800, "val200": spec.val200, "test": spec.test}[name]) for name in names]


def _slice(part: Slice, rows: Mapping[str, list[Row]]) -> list[Row]:
    if part.split not in rows:  # the Hub lacks the original validation split: validate on the next training rows
        return rows["train"][800:1000]
    return rows[part.split][part.start : part.stop]


def _keys(source: HubSource, table: HubTable) -> list[str | int]:
    columns = [table.stored_paths(c.split(".")[0]) if c.endswith(".path") else table.values(c) for c in source.key]
    return [source.to_key(*values) for values in zip(*columns, strict=True)]


def _labels(source: HubSource, tables: list[HubTable], rows: list[Row]) -> list[int]:
    labels: dict[Row, int] = {}
    for number, table in enumerate(tables):
        wanted = [row for n, row in rows if n == number]
        columns = [table.values(column, wanted) for column in source.label]
        for row, values in zip(wanted, zip(*columns, strict=True), strict=True):
            try:
                labels[number, row] = source.to_label(*values)
            except DataError as error:
                raise DataError(f"{table.source}, row {row}: {error}") from None
    return [labels[row] for row in rows]
