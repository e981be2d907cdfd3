# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Read one split of a Hub data set, or of a local copy, and record the commit.

All access goes through `datasets`, so its cache, `HF_ENDPOINT` and `HF_HUB_OFFLINE` work as usual.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..errors import DataError
from ..images import decode

if TYPE_CHECKING:
    import datasets

_COMMIT = re.compile("[0-9a-f]{7,40}")


class HubTable:
    """One split of a Hub data set.

    Attributes:
        rows: The split.
        source: Repository or local path, for messages and records.
        revision: Commit that was read. None for a local copy.
    """

    def __init__(self, rows: "datasets.Dataset", source: str, revision: str | None) -> None:
        self.rows = rows
        self.source = source
        self.revision = revision

    def __len__(self) -> int:
        return len(self.rows)

    def require(self, columns: Sequence[str]) -> None:
        """Check that the columns exist.

        Raises:
            DataError: A column is missing. The message lists the existing ones.
        """
        missing = [column for column in columns if column not in self.rows.column_names]
        if missing:
            raise DataError(
                f"{self.source} has no column {missing[0]!r}. Expected {', '.join(columns)}, found"
                f" {', '.join(self.rows.column_names)}. Another revision of the repository may have it."
            )

    def values(self, column: str, rows: Sequence[int] | None = None) -> list[Any]:
        """Return a column's stored values, undecoded (class numbers, not names), for all rows or the given ones."""
        table = self.rows.select_columns([column])
        return (table if rows is None else table.select(rows)).with_format("arrow")[:][column].to_pylist()

    def stored_paths(self, column: str) -> list[str | None]:
        """Return the file name stored with each image of a column. None if there is none."""
        images = self.rows.select_columns([column]).with_format("arrow")[:][column]
        return images.flatten()[images.type.get_field_index("path")].to_pylist()

    def class_names(self, column: str) -> list[str] | None:
        """Return the class names of a label column. None if the data set does not record them."""
        return getattr(self.rows.features[column], "names", None)


def open_table(
    repo: str,
    split: str,
    *,
    config: str | None = None,
    revision: str | None = None,
    path: str | Path | None = None,
) -> HubTable:
    """Open a split, downloading it unless it is cached.

    Args:
        repo: Hub id such as "uoft-cs/cifar100".
        split: Split of the repository.
        config: Configuration (subset) of the repository.
        revision: Commit, tag or branch.
        path: Local copy of the repository to read instead.

    Raises:
        DataError: The split cannot be read. The message says what to do.
        ImportError: `datasets` is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError("reading Hub data sets requires an extra: pip install 'gated-prompt[data]'") from error

    source = repo if path is None else str(path)
    if path is not None and not Path(path).is_dir():
        raise DataError(f"{path} is not a folder. Expected a local copy of the Hub data set {repo}.")
    try:
        builder = datasets.load_dataset_builder(source, config, revision=revision if path is None else None)
        if path is None and revision and _COMMIT.fullmatch(revision) and not builder.hash.startswith(revision):
            # Offline, `datasets` uses the newest cached commit, whichever one was requested.
            raise ValueError(f"the newest cached commit is {builder.hash}, and only that one can be read offline.")
        builder.download_and_prepare()
        rows = builder.as_dataset(split)
    except (datasets.exceptions.DatasetsError, ValueError, RuntimeError, OSError) as error:
        raise DataError(
            f"Cannot read split {split!r} of {source}{f' (config {config})' if config else ''}"
            f"{f' at revision {revision}' if revision and path is None else ''}: {error}\nFor use without"
            " network access, read it once while online, or give the folder of a local copy as `path`."
        ) from error
    # For a Hub repository, the builder's hash (also the name of its cache folder) is the commit.
    return HubTable(rows, source, builder.hash if path is None else None)


class HubImages:
    """Images from one column of several tables, decoded on access."""

    def __init__(
        self,
        tables: Sequence[HubTable],
        column: str,
        rows: Sequence[tuple[int, int]],
        finish: Callable[[Image.Image], Image.Image] | None = None,
        *,
        as_stored: bool = False,
        upright: bool = True,
    ) -> None:
        """`rows`: (table number, row number) of each image. `finish`: applied after `decode`, which takes the rest."""
        import datasets

        self._sources = [table.source for table in tables]
        for table in tables:
            if not isinstance(table.rows.features[column], datasets.Image):
                raise DataError(
                    f"{table.source}: column {column!r} does not hold images, but {table.rows.features[column]}."
                )
        raw = datasets.Image(decode=False)
        self._bytes = [table.rows.select_columns([column]).cast_column(column, raw) for table in tables]
        self._column = column
        self._rows = rows
        self._finish = finish
        self._as_stored = as_stored
        self._upright = upright

    def __len__(self) -> int:
        return len(self._rows)

    def stored(self, index: int) -> bytes | Path:
        """The content or path of an image's file."""
        table, row = self._rows[index]
        found = self._bytes[table][row][self._column]
        return found["bytes"] if found["bytes"] is not None else Path(found["path"])

    def __getitem__(self, index: int) -> Image.Image:
        image = decode(self.stored(index), self.name(index), as_stored=self._as_stored, upright=self._upright)
        return image if self._finish is None else self._finish(image)

    def name(self, index: int) -> str:
        table, row = self._rows[index]
        return f"in row {row} of {self._sources[table]}, column {self._column!r}"
