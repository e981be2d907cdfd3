# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Adapters in memory, within a limit: loaded at their first call, and the least recently used dropped first.

Any number of threads may call.
"""

import threading
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from PIL import Image
from torch import Tensor

from ..errors import AdapterMismatchError, DamagedAdapterError, GatedPromptError
from ..heads import Reads
from ..predictor import FILE, Predictor

Stamp = tuple[tuple[int, ...] | None, ...]
TRIES, MOMENT = 10, 0.005  # to read files that are being replaced. Seconds between them
T = TypeVar("T")


class PoolFullError(GatedPromptError):
    """Every adapter in memory is in use and one more does not fit. Try again when some calls have ended."""


@dataclass(eq=False, kw_only=True)
class Loaded:
    """An adapter in memory.

    Attributes:
        predictor: its class names, its preprocessing and what its head reads.
        sha256: of its weights. None if it is unknown.
        nbytes: memory of its tensors.
        stamp: of the files that it was read from.
        users: number of calls that hold it.
    """

    predictor: Predictor
    sha256: str | None
    nbytes: int
    stamp: Stamp
    users: int = 0


L = TypeVar("L", bound=Loaded)


class AdapterCache(ABC, Generic[L]):
    """The most recently used adapters of one backbone, by the folder or file that each is read from.

    Args:
        memory: bytes that all adapters together may take.

    Attributes:
        nbytes: memory of all loaded adapters.
    """

    def __init__(self, memory: int) -> None:
        self.memory, self.nbytes = memory, 0
        self._loaded: OrderedDict[Path, L] = OrderedDict()  # least recently used first
        self._replaced: list[L] = []  # by other files. Dropped when their calls have ended
        self._loading: dict[Path, threading.Lock] = {}  # each is held by the thread that loads and tries an adapter
        self._books = threading.Lock()  # guards the three above. Never held while files are read or logits computed
        self._changes = threading.RLock()  # one adapter at a time is added or dropped

    @abstractmethod
    def logits(self, pixels: Tensor, adapters: Sequence[L]) -> list[Tensor]:
        """Return logits (K_i,) of each image of `pixels` (B, 3, H, W) from its own adapter, in one mixed batch."""

    def frozen(self, reads: Reads, blocks: Sequence[int]) -> L:
        """What `logits` takes for the frozen features of an image: those that a probe of these settings would read.

        Raises:
            GatedPromptError: the backbone has no such features.
        """
        raise GatedPromptError("this server has no features of images. Serve the backbone with PyTorch: --backbone.")

    @abstractmethod
    def _load(self, place: Path, stamp: Stamp) -> L:
        """Read an adapter, make room for it with `_keep`, and try it."""

    @abstractmethod
    def _stamp(self, place: Path) -> Stamp:
        """A value that changes when another adapter replaces this one."""

    def _unload(self, adapter: L) -> None:
        """What else to do when an adapter is dropped."""

    def __len__(self) -> int:
        return len(self._loaded)

    @contextmanager
    def hold(self, place: Path) -> Iterator[L]:
        """The adapter in `place`, loaded if it is not in memory or its files changed. It stays while this is open.

        Raises:
            PoolFullError: it does not fit beside the adapters in use.
            GatedPromptError: it is damaged, does not fit the backbone, or exceeds the limit alone.
        """
        adapter = self._take(place)
        try:
            yield adapter
        finally:
            with self._books:
                adapter.users -= 1

    def forget(self, place: Path) -> None:
        """Drop an adapter, at once or when the calls that use it have ended."""
        with self._changes:
            with self._books:
                self._retire(place)
            self._make_room(0)

    def _take(self, place: Path) -> L:
        if (found := self._in_memory(place)) is not None:
            return found
        with self._books:
            loading = self._loading.setdefault(place, threading.Lock())
        with loading:  # one thread loads it, and others load other adapters meanwhile
            try:
                if (found := self._in_memory(place)) is not None:  # another thread was faster
                    return found
                adapter = self._load_undisturbed(place)
                with self._books:
                    self._retire(place)
                    adapter.users += 1
                    self._loaded[place] = adapter
                return adapter
            finally:
                with self._books:
                    self._loading.pop(place, None)

    def _retire(self, place: Path) -> None:
        """With `_books` held: have an adapter dropped when the calls that use it have ended."""
        old = self._loaded.pop(place, None)
        if old is not None:
            self._replaced.append(old)

    def _in_memory(self, place: Path) -> L | None:
        stamp = self._stamp(place)
        with self._books:
            found = self._loaded.get(place)
            if found is None or found.stamp != stamp:
                return None
            self._loaded.move_to_end(place)
            found.users += 1
            return found

    def _load_undisturbed(self, place: Path) -> L:
        """Load it, again if its files changed meanwhile. What is being replaced is missing for a moment."""
        for _ in range(TRIES):
            stamp = self._stamp(place)
            try:
                adapter = self._load(place, stamp)
            except (DamagedAdapterError, AdapterMismatchError):
                time.sleep(MOMENT)
                if self._stamp(place) == stamp:
                    raise
                continue
            if self._stamp(place) == stamp:
                return adapter
            self._drop(adapter)  # it may have the names of one adapter and the weights of another
        raise DamagedAdapterError(f"the adapter in {place} kept being replaced while it was read. Try again.")

    def _keep(self, place: Path, nbytes: int, add: Callable[[], T]) -> T:
        """What `add` returns, which puts an adapter of so many bytes where calls find it, once there is room."""
        if nbytes > self.memory:
            raise GatedPromptError(
                f"the adapter in {place} takes {nbytes} bytes, more than the limit of {self.memory} for all. Raise "
                "the limit."
            )
        with self._changes:
            self._make_room(nbytes)
            found = add()
            self.nbytes += nbytes
        return found

    def _try(self, adapter: L) -> None:
        """Compute one image before anyone else calls the adapter, and drop the adapter if that fails."""
        try:
            self._compute_grey(adapter)
        except BaseException:
            self._drop(adapter)
            raise

    def _compute_grey(self, adapter: L) -> None:
        pixels = adapter.predictor.transform()(Image.new("RGB", (64, 64), "grey"))[None]
        try:
            (logits,) = self.logits(pixels, [adapter])
        except (RuntimeError, ValueError) as error:
            raise AdapterMismatchError(
                f"the adapter does not compute on this backbone with images prepared as its {FILE} says: {error}"
            ) from error
        if not logits.isfinite().all():
            raise AdapterMismatchError("the adapter's scores of a grey image are not finite. Train it again.")

    def _make_room(self, nbytes: int) -> None:
        """Drop unused adapters, least recently used first, until `nbytes` more fit."""
        while True:
            with self._books:
                gone = next((one for one in self._replaced if not one.users), None)
                if gone is not None:
                    self._replaced.remove(gone)
                elif self.nbytes + nbytes <= self.memory:
                    return
                else:
                    place = next((p for p, one in self._loaded.items() if not one.users), None)
                    if place is None:
                        raise PoolFullError(
                            f"{len(self._loaded)} adapters with {self.nbytes} bytes are in use, and {nbytes} more "
                            f"exceed the limit of {self.memory}. Try again, or raise the limit."
                        )
                    gone = self._loaded.pop(place)
            self._drop(gone)

    def _drop(self, adapter: L) -> None:
        with self._changes:
            self._unload(adapter)
            self.nbytes -= adapter.nbytes
