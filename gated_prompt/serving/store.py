# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The folder of served adapters: all that replicas share, so they need no messages between them.

An adapter that a client adds is copied to a folder of its own in `.versions`, which never changes, and its name is a
symbolic link to it. So a name switches in one step, and whoever reads the old version reads it to its end. `Sources`
are the folders and Hub ids of `--allow`, from which clients may add adapters.
"""

import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from ..errors import AdapterNameError, DamagedAdapterError, GatedPromptError
from .contents import FILES, describe, is_servable, used
from .schemas import AdapterInfo, Source

NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
VERSIONS = ".versions"
KEPT = 300.0  # seconds that a version which no name leads to stays, for those that still read it or make it
LOCK_SECONDS = 30.0


class Store:
    """Adapters by name in the subfolders of `root`. `changes`: clients may add and remove some.

    Raises:
        GatedPromptError: there is no such folder.
    """

    def __init__(self, root: str, changes: bool = False) -> None:
        if not root or not os.path.isdir(root):
            raise GatedPromptError(
                f"--adapters {root!r} is not a folder. Give one with a subfolder for each adapter, or for each run of "
                "`gated-prompt train`."
            )
        self.root, self.changes = Path(root).resolve(), changes

    def describe_all(self) -> list[AdapterInfo]:
        """What the files of each adapter say, in the order of the names."""
        return [describe(path.name, used(path)) for path in self._subfolders() if self._find(path.name) is not None]

    def skipped(self) -> dict[str, str]:
        """Subfolders that cannot be served, and why."""
        found = {}
        for path in self._subfolders():
            if not re.fullmatch(NAME, path.name):
                found[path.name] = "its name is no name for an adapter: 1 to 64 of A-Z, a-z, 0-9, - and _"
            elif not is_servable(used(path)):
                found[path.name] = "it has neither an adapter nor a probe, nor is it a finished run of `train`"
            elif error := describe(path.name, used(path)).error:
                found[path.name] = error
        return found

    def find(self, name: str) -> Path:
        """The folder of an adapter. Of one that a client added, it never changes.

        Raises:
            AdapterNameError: there is no such adapter.
        """
        found = self._find(name)
        if found is None and self.changes:
            with self._alone():  # a folder that somebody placed by hand is missing while a link takes its place
                found = self._find(name)
        if found is None:
            raise AdapterNameError(f"no adapter is named {name!r}. GET /v1/adapters lists them.")
        return found

    def describe(self, name: str, folder: Path) -> AdapterInfo:
        """What the files of an adapter say, or why they cannot be used."""
        return describe(name, folder)

    def copy(self, sources: "Sources", source: Source) -> Path:
        """A copy, not served yet, of the adapter or probe at `source`.

        Raises:
            PermissionError: the source is not allowed.
            DamagedAdapterError: the Hub has no such adapter, or one of its files is too large.
        """
        version = self.new_version()
        try:
            sources.copy(source.source, source.revision, version)
        except BaseException:
            self.discard(version)
            raise
        return version

    def discard(self, version: Path) -> None:
        """Remove a copy that is not served."""
        shutil.rmtree(version, ignore_errors=True)

    def new_version(self) -> Path:
        """An empty folder for a copy that is not served yet."""
        folder = self.root / VERSIONS / uuid.uuid4().hex
        folder.mkdir(parents=True)
        return folder

    def publish(self, version: Path, name: str) -> Path:
        """Serve a version under a name, in place of the adapter that has it. Returns the folder that is served.

        Raises:
            PermissionError: that is a run of `train`, which holds more than an adapter.
        """
        link, new = self.root / name, version.with_name(f"{version.name}.link")
        new.symlink_to(os.path.join(VERSIONS, version.name), target_is_directory=True)
        with self._alone():
            self._retire(link, keep_link=True)
            os.replace(new, link)
            self._sweep()
        return version

    def delete(self, name: str) -> None:
        """Stop serving an adapter.

        Raises:
            AdapterNameError: there is no such adapter.
            PermissionError: it is a run of `train`, which holds more than an adapter.
        """
        with self._alone():
            if self._find(name) is None:
                raise AdapterNameError(f"no adapter is named {name!r}. GET /v1/adapters lists them.")
            self._retire(self.root / name, keep_link=False)
            self._sweep()

    def _find(self, name: str) -> Path | None:
        if not re.fullmatch(NAME, name):
            return None
        folder = used(self.root / name).resolve()
        return folder if is_servable(folder) else None

    def _subfolders(self) -> list[Path]:
        return [path for path in sorted(self.root.iterdir()) if path.is_dir() and not path.name.startswith(".")]

    def _retire(self, place: Path, keep_link: bool) -> None:
        """Take what stands under a name away, or, with `keep_link`, prepare that it be replaced in one step."""
        if place.is_symlink():
            target = place.resolve()
            if target.parent == self.root / VERSIONS and target.exists():
                os.utime(target)  # it is kept from now on
            if not keep_link:
                place.unlink()
        elif place.exists():
            if used(place) != place:
                raise PermissionError(
                    f"{place.name!r} is a run of `train`, which the server neither replaces nor removes"
                )
            os.utime(place)
            (self.root / VERSIONS).mkdir(exist_ok=True)
            os.rename(place, self.root / VERSIONS / uuid.uuid4().hex)

    def _sweep(self) -> None:
        """Remove versions that no name leads to any more, and copies that were never served."""
        served = {path.resolve() for path in self.root.iterdir() if path.is_symlink()}
        for path in (self.root / VERSIONS).iterdir():
            if path.resolve() in served or time.time() - path.lstat().st_mtime < KEPT:
                continue
            if path.is_symlink():
                path.unlink()
            else:
                shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One change at a time, over all replicas."""
        (self.root / VERSIONS).mkdir(exist_ok=True)
        with FileLock(self.root / f"{VERSIONS}.lock", timeout=LOCK_SECONDS):
            yield


LONGEST = 2**30  # bytes of a file that is copied


class Sources:
    """Folders, with everything below them, and Hub ids. Others are refused."""

    def __init__(self, allow: list[str]) -> None:
        self.folders = [Path(one).resolve() for one in allow if os.path.isdir(one)]
        self.hub_ids = [one for one in allow if not os.path.isdir(one)]

    def copy(self, source: str, revision: str | None, folder: Path) -> None:
        """Copy the adapter or probe at `source` into a folder, or the one file that it is.

        What is missing there is for others to find.

        Raises:
            PermissionError: the source is not allowed.
            DamagedAdapterError: the Hub has no such adapter, or one of its files is too large.
        """
        from_hub = source in self.hub_ids
        found = download(source, revision) if from_hub else self._below_a_folder(source)
        for path in [found] if found.is_file() else [found / name for name in FILES]:
            if not path.is_file():
                continue
            if not from_hub and path.parent not in path.resolve().parents:  # the Hub's cache consists of links
                raise PermissionError(f"{path.name} in {source!r} is a link to another folder")
            if path.stat().st_size > LONGEST:
                raise DamagedAdapterError(f"{path.name} in {source!r} is larger than {LONGEST} bytes")
            shutil.copyfile(path, folder / path.name)

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
            f"no adapter at {source!r}, revision {revision or 'main'!r}: the Hub says {str(error).splitlines()[0]!r}. "
            "Check the names and the connection."
        ) from error
