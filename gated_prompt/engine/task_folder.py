# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The tasks of an engine by name, for the server, as `serving.store.Store` has folders of adapters.

A task is one file, which is replaced in one step: whoever reads the old one reads it to its end. So there are neither
versions nor a lock, and a file that is copied into the folder is served from the next request on.
"""

import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import AdapterNameError, DamagedAdapterError, DataError, GatedPromptError
from ..files.adapter_file import fingerprint, stamp_of
from ..predictor import Predictor
from ..serving.schemas import AdapterInfo, Source
from ..serving.store import KEPT, NAME, Sources
from . import run
from .task_file import FOLDER, SUFFIX, convert, runtime_errors

NEW = ".new"  # ends the name of a file that is not served yet


class TaskFolder:
    """The tasks of the engine in `engine`. `changes`: clients may add and remove some.

    Raises:
        GatedPromptError: there is no engine.
    """

    def __init__(self, engine: str | Path, changes: bool = False) -> None:
        self.root, self.changes = Path(engine).resolve(), changes
        with runtime_errors():
            self.about = run.read_about(self.root)
        self.files = self.root / FOLDER
        self.files.mkdir(exist_ok=True)
        self._described = lru_cache(10_000)(self._describe)  # a folder may have thousands

    def find(self, name: str) -> Path:
        """The file of a task.

        Raises:
            AdapterNameError: there is no such task.
        """
        path = self.files / f"{name}{SUFFIX}"
        if not re.fullmatch(NAME, name) or not path.is_file():
            raise AdapterNameError(f"no adapter is named {name!r}. GET /v1/adapters lists them.")
        return path

    def describe(self, name: str, path: Path) -> AdapterInfo:
        """What the file of a task says, or why it cannot be used."""
        return self._described(path, stamp_of(path)).model_copy(update={"name": name})

    def describe_all(self) -> list[AdapterInfo]:
        """What the file of each task says, in the order of the names."""
        return [self.describe(name, path) for name, path in self._all() if re.fullmatch(NAME, name)]

    def skipped(self) -> dict[str, str]:
        """Files that cannot be served, and why."""
        found = {}
        for name, path in self._all():
            if not re.fullmatch(NAME, name):
                found[path.name] = "its name is no name for an adapter: 1 to 64 of A-Z, a-z, 0-9, - and _"
            elif error := self.describe(name, path).error:
                found[path.name] = error
        return found

    def copy(self, sources: Sources, source: Source) -> Path:
        """A file, not served yet, of the adapter, probe or task at `source`.

        Raises:
            PermissionError: the source is not allowed.
            GatedPromptError: it cannot be a task of this engine.
        """
        path, name = self.files / f".{uuid.uuid4().hex}{NEW}", Path(source.source).name
        with tempfile.TemporaryDirectory() as place:
            try:
                sources.copy(source.source, source.revision, Path(place))
                if name.endswith(SUFFIX) and Path(place, name).is_file():
                    shutil.move(Path(place, name), path)
                else:
                    convert(Path(place), name, path, self.about)
            except GatedPromptError as error:
                raise type(error)(str(error).replace(place, source.source)) from error
        return path

    def publish(self, version: Path, name: str) -> Path:
        """Serve a file under a name, in place of the task that has it."""
        for path in self.files.glob(f".*{NEW}"):
            with suppress(FileNotFoundError):  # another replica was faster
                if time.time() - path.lstat().st_mtime > KEPT:  # of a server that was killed
                    self.discard(path)
        served = self.files / f"{name}{SUFFIX}"
        os.replace(version, served)
        return served

    def discard(self, version: Path) -> None:
        """Remove a file that is not served."""
        version.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        """Stop serving a task.

        Raises:
            AdapterNameError: there is no such task.
        """
        self.find(name).unlink(missing_ok=True)

    def _describe(self, path: Path, stamp: tuple[int, ...] | None) -> AdapterInfo:
        try:
            with runtime_errors():
                told = run.describe_adapter(path, self.about)
            predictor, sha256 = predictor_of(path, told, self.about), sha256_of(path)
        except GatedPromptError as error:
            return AdapterInfo(name="", error=str(error))
        return AdapterInfo(name="", classes=predictor.names, problem=predictor.problem, sha256=sha256)

    def _all(self) -> Iterator[tuple[str, Path]]:
        paths = sorted(self.files.glob(f"*{SUFFIX}"))
        return ((path.name.removesuffix(SUFFIX), path) for path in paths)


def predictor_of(place: Path, told: dict[str, Any], about: dict[str, Any]) -> Predictor:
    """How a task of an engine prepares images and answers, from the metadata of its file and `engine.json`.

    Raises:
        DamagedAdapterError: they say what cannot be.
    """
    try:
        return Predictor(told["names"], about["preparation"], problem=told["problem"], temperature=told["temperature"])
    except DataError as error:
        raise DamagedAdapterError(f"{place}: {error}. Export the task again.") from error


def sha256_of(path: Path) -> str:
    """SHA-256 of the file of a task.

    Raises:
        DamagedAdapterError: it cannot be read.
    """
    try:
        return fingerprint(path)
    except OSError as error:
        raise DamagedAdapterError(f"{path} cannot be read ({error.strerror}). Copy or export it again.") from error
