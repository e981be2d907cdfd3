# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Write a folder atomically."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ConversionError

WRITTEN_HERE = {
    *("config.json", "model.safetensors", "preprocessor_config.json"),
    *("adapter_config.json", "adapter_model.safetensors", "README.md"),
}


@contextmanager
def whole_folder(folder: str | os.PathLike[str], overwrite: bool) -> Iterator[Path]:
    """Give a place to write in; when the block ends without an error it becomes `folder`.

    A process that is killed leaves `folder` as it was (killed between the two renames of an overwriting: the old one
    beside it, as `.NAME.replaced`).

    Raises:
        ConversionError: see `check_place`.
    """
    target = check_place(folder, overwrite)
    staging, replaced = (target.with_name(f".{target.name}.{word}") for word in ("converting", "replaced"))
    shutil.rmtree(staging, ignore_errors=True)  # of a conversion that was killed; a fixed name, so no litter
    staging.mkdir(parents=True)
    try:
        yield staging
        for path in staging.iterdir():
            with open(path, "r+b") as file:
                os.fsync(file.fileno())
        if target.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            os.rename(target, replaced)
            try:
                os.rename(staging, target)
            except OSError:
                os.rename(replaced, target)
                raise
            shutil.rmtree(replaced)
        else:
            os.rename(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_place(folder: str | os.PathLike[str], overwrite: bool) -> Path:
    """The resolved path of `folder`, which is new, or empty, or holds an earlier conversion that may be replaced.

    Raises:
        ConversionError: it is a file, it is not empty and `overwrite` is False, or it holds other files than those
            that a conversion writes.
    """
    target = Path(folder).resolve()
    if target.exists() and not target.is_dir():
        raise ConversionError(f"{target} is a file, expected a folder; give another place")
    held = sorted(path.name for path in target.iterdir()) if target.is_dir() else []
    if held and not overwrite:
        raise ConversionError(
            f"{target} is not empty (it holds {', '.join(held[:5])}); give another place, or allow to overwrite it"
        )
    foreign = [name for name in held if name not in WRITTEN_HERE]
    if foreign:
        raise ConversionError(
            f"{target} holds {', '.join(foreign[:5])}, which no conversion wrote, so it is not replaced; give another "
            "place, or remove it yourself"
        )
    return target
