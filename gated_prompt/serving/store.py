# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The folder of served adapters: all that replicas share, so they need no messages between them."""

import os
import re
import shutil
import time
import uuid
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

from ..errors import AdapterNameError, DamagedAdapterError, GatedPromptError
from ..files.header import read_config
from ..predictor import FILE, read_predictor
from .schemas import AdapterInfo

NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
CARD = "README.md"
FILES = (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, FILE, CARD)
LONGEST_CARD = 100_000  # characters
LONGEST = 2**30  # bytes of a file that is copied


class Store:
    """Adapters by name in the subfolders of `root`; new ones may come from the folders and Hub ids in `allow`."""

    def __init__(self, root: str, allow: list[str]) -> None:
        self.root = Path(root).resolve()
        self.folders = [Path(one).resolve() for one in allow if os.path.isdir(one)]
        self.hub_ids = [one for one in allow if not os.path.isdir(one)]
        if not self.root.is_dir():
            raise GatedPromptError(f"--adapters {root} is not a folder; create it, or give another")

    def names(self) -> list[str]:
        return sorted(p.parent.name for p in self.root.glob(f"*/{CONFIG_NAME}") if re.match(NAME, p.parent.name))

    def describe_all(self) -> list[AdapterInfo]:
        return [describe(self.root / name) for name in self.names()]

    def find(self, name: str) -> Path:
        """The folder of an adapter.

        Raises:
            AdapterNameError: there is no such adapter.
        """
        folder = self.root / name
        for _ in range(5):  # a folder that is being replaced is missing for a moment
            if re.match(NAME, name) and (folder / CONFIG_NAME).is_file():
                return folder
            time.sleep(0.002)
        raise AdapterNameError(f"no adapter is named {name!r}; GET /v1/adapters lists them")

    def fetch(self, source: str, revision: str | None) -> Path:
        """Copy the adapter at `source` to a folder that is not served yet.

        Raises:
            PermissionError: the source is not allowed.
            DamagedAdapterError: there is no adapter, or one of its files is too large.
        """
        if source in self.hub_ids:
            found = download(source, revision)
        elif any(Path(source).resolve().is_relative_to(folder) for folder in self.folders):
            found = Path(source).resolve()
        else:
            raise PermissionError(f"{source!r} is neither below a folder nor a Hub id that the server's --allow names")
        copy = self.root / f".new-{uuid.uuid4().hex}"
        copy.mkdir()
        try:
            for name in FILES:
                if not (found / name).is_file():
                    continue  # the pool reports missing files
                if found not in (found / name).resolve().parents and source not in self.hub_ids:
                    raise PermissionError(f"{name} in {source!r} is a link to another folder")
                if (found / name).stat().st_size > LONGEST:
                    raise DamagedAdapterError(f"{name} in {source!r} is larger than {LONGEST} bytes")
                shutil.copyfile(found / name, copy / name)
        except BaseException:
            shutil.rmtree(copy)
            raise
        return copy

    def publish(self, copy: Path, name: str) -> Path:
        """Serve a copy under a name, in place of the adapter that has it."""
        folder = self.root / name
        old = self._away(folder)
        os.rename(copy, folder)
        shutil.rmtree(old, ignore_errors=True)
        return folder

    def delete(self, name: str) -> Path:
        """Stop serving an adapter.

        Raises:
            AdapterNameError: there is no such adapter.
        """
        folder = self.find(name)
        shutil.rmtree(self._away(folder), ignore_errors=True)
        return folder

    def _away(self, folder: Path) -> Path:
        old = self.root / f".old-{uuid.uuid4().hex}"
        if folder.exists():
            os.rename(folder, old)
        return old


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


def describe(folder: Path) -> AdapterInfo:
    """What the files of an adapter say, or why they cannot be read."""
    try:
        predictor, config = read_predictor(folder), read_config(folder / CONFIG_NAME)
    except GatedPromptError as error:
        return AdapterInfo(name=folder.name, error=str(error))
    card, sha256 = folder / CARD, config.get("weights_sha256")
    return AdapterInfo(
        name=folder.name,
        classes=predictor.names,
        problem=predictor.problem,
        sha256=sha256 if isinstance(sha256, str) else None,
        card=card.read_text(encoding="utf-8", errors="replace")[:LONGEST_CARD] if card.is_file() else None,
    )
