# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Write a folder atomically."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ConversionError

OUTPUT_FILES = {
    *("config.json", "model.safetensors", "preprocessor_config.json", "conversion.json"),
    *("adapter_config.json", "adapter_model.safetensors", "README.md"),
}


@contextmanager
def atomic_folder(folder: str | os.PathLike[str], overwrite: bool) -> Iterator[Path]:
    """Yield a staging folder that becomes `folder` if the block ends without an error.

    A killed process leaves `folder` unchanged. If it is killed between the two renames of an overwrite, the old folder
    remains next to it as `.NAME.replaced`.

    Raises:
        ConversionError: see `check_output_folder`.
    """
    target = check_output_folder(folder, overwrite)
    staging, replaced = (target.with_name(f".{target.name}.{word}") for word in ("converting", "replaced"))
    shutil.rmtree(staging, ignore_errors=True)  # left by a killed conversion. A fixed name, so no pile
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


def check_output_folder(folder: str | os.PathLike[str], overwrite: bool) -> Path:
    """Return the resolved path of `folder`, which is new, empty, or an earlier conversion that may be replaced.

    Raises:
        ConversionError: it is a file, it is not empty and `overwrite` is False, or it contains files that no
            conversion writes.
    """
    target = Path(folder).resolve()
    if target.exists() and not target.is_dir():
        raise ConversionError(f"{target} is a file, expected a folder. Give another path.")
    held = sorted(path.name for path in target.iterdir()) if target.is_dir() else []
    if held and not overwrite:
        raise ConversionError(
            f"{target} is not empty (it contains {', '.join(held[:5])}). Give another path, or set overwrite."
        )
    foreign = [name for name in held if name not in OUTPUT_FILES]
    if foreign:
        raise ConversionError(
            f"{target} contains {', '.join(foreign[:5])}, which no conversion wrote, so the folder is not replaced. "
            "Give another path, or delete it yourself."
        )
    return target
