# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The rows of a CSV, TSV or JSONL file, read line by line as their formats define lines: texts by column."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ..errors import DataError
from .labels import clean

DELIMITERS = {".csv": ",;\t", ".tsv": "\t"}  # the most frequent one in the header
JSON_LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class Row:
    """One line. A value is text, None, or a list of these."""

    line: int
    values: dict[str, Any]


def read_rows(file: Path) -> list[Row]:
    """All rows but empty ones. Texts are in NFC, without spaces around them.

    Raises:
        DataError: the file cannot be read, or a line is not what it should be. The message names the line.
    """
    suffix = file.suffix.lower()
    if suffix not in (*DELIMITERS, *JSON_LINES):
        raise DataError(f"{file} does not end in .csv, .tsv or .jsonl. Export the table as CSV in UTF-8.")
    text = _text_of(file)
    return list(_json_rows(file, text) if suffix in JSON_LINES else _csv_rows(file, text, DELIMITERS[suffix]))


def _text_of(file: Path) -> TextIO:
    """Return the file as text whose lines end only at line ends. U+2028 and form feeds are ordinary characters."""
    try:
        content = file.read_bytes()
        return io.StringIO(content.decode("utf-8-sig"), newline="")
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{file}, line {line}, is not UTF-8: it has the byte {content[error.start]:#04x}. Save the table "
            "as CSV in UTF-8."
        ) from None


def _csv_rows(file: Path, text: TextIO, delimiters: str) -> Iterator[Row]:
    first = text.readline()
    text.seek(0)
    reader = csv.reader(text, delimiter=max(delimiters, key=first.count), strict=True)
    try:
        header = [clean(cell) for cell in next(reader, [])]
        if len(set(header)) < len(header):
            twice = next(name for name in header if header.count(name) > 1)
            raise DataError(f"{file} has {header.count(twice)} columns named {twice!r}. Give each its own name.")
        line = reader.line_num + 1
        for cells in reader:
            values = [clean(cell) for cell in cells]
            if any(values):
                if len(values) != len(header):
                    raise DataError(
                        f"{file}, line {line}, has {len(values)} cells where the header has {len(header)}. Put a cell "
                        'with a comma or a quote in it into quotes: "red, big".'
                    )
                yield Row(line, dict(zip(header, values, strict=True)))
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{file}, line {reader.line_num}, is not valid CSV: {error}. Perhaps a quote before it was never closed."
        ) from None


def _json_rows(file: Path, text: TextIO) -> Iterator[Row]:
    number = 0
    for number, line in enumerate(_newlines(text), start=1):
        if not line.strip():
            continue
        try:
            # Numbers stay as written, since 1.50 can be a name and int() refuses 5000 digits.
            values = json.loads(line, parse_int=str, parse_float=str, parse_constant=str)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file}, line {number}, is not JSON: {error}") from None
        if not isinstance(values, dict):
            raise DataError(f'{file}, line {number}, is not an object like {{"image": ..., "label": ...}}')
        yield Row(number, {clean(name): clean(value) for name, value in values.items()})


def _newlines(text: TextIO) -> Iterator[str]:
    """Lines that end in \\n: a lone \\r inside a line of JSON is space."""
    held = ""
    for part in text:
        held += part
        if part.endswith("\n"):
            yield held
            held = ""
    if held:
        yield held
