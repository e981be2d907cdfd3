# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Where a client may add adapters from: the folders and Hub ids of `--allow`."""

import os
import shutil
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from ..errors import DamagedAdapterError
from .contents import FILES, used

LONGEST = 2**30  # bytes of a file that is copied


class Sources:
    """Folders, with everything below them, and Hub ids. Others are refused."""

    def __init__(self, allow: list[str]) -> None:
        self.folders = [Path(one).resolve() for one in allow if os.path.isdir(one)]
        self.hub_ids = [one for one in allow if not os.path.isdir(one)]

    def copy(self, source: str, revision: str | None, folder: Path) -> None:
        """Copy the adapter or probe at `source` into a folder. What is missing there is for others to find.

        Raises:
            PermissionError: the source is not allowed.
            DamagedAdapterError: the Hub has no such adapter, or one of its files is too large.
        """
        from_hub = source in self.hub_ids
        found = download(source, revision) if from_hub else self._below_a_folder(source)
        for name in FILES:
            path = found / name
            if not path.is_file():
                continue
            if not from_hub and found not in path.resolve().parents:  # the Hub's cache consists of links
                raise PermissionError(f"{name} in {source!r} is a link to another folder")
            if path.stat().st_size > LONGEST:
                raise DamagedAdapterError(f"{name} in {source!r} is larger than {LONGEST} bytes")
            shutil.copyfile(path, folder / name)

    def _below_a_folder(self, source: str) -> Path:
        try:
            found = used(Path(source).resolve()).resolve()
        except (OSError, ValueError):  # too long for the system, or with a NUL
            found = None
        if found is None or not any(found.is_relative_to(folder) for folder in self.folders):
            raise PermissionError(f"{source!r} is neither below a folder nor a Hub id that the server's --allow names")
        return found


def download(source: str, revision: str | None) -> Path:
    """Download the files of an adapter from the Hub into the cache.

    Raises:
        DamagedAdapterError: they cannot be downloaded.
    """
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(FILES)))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise DamagedAdapterError(
            f"no adapter at {source!r}, revision {revision or 'main'!r}: the Hub says {str(error).splitlines()[0]!r}; "
            "check the names and the connection"
        ) from error
