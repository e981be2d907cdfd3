# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""One replica without HTTP: the backbone, the adapters in its memory, and the folder that all replicas share."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import AdapterMismatchError, GatedPromptError
from ..heads import Reads
from .cache import Loaded
from .pool import AdapterPool, load_pool
from .schemas import AdapterInfo, Answer, Features, Prediction, Source, public
from .settings import Settings
from .store import Sources, Store
from .uploads import MEGAPIXEL, Client, ClientGoneError, Decoder

TRIES = 10  # to load an adapter that is being replaced


@dataclass(eq=False)
class Item:
    """One image of a batch, and who waits for it."""

    pixels: Tensor
    resident: Loaded
    client: Client


Compute = Callable[[Item], Awaitable[Tensor | None]]


class Replica:
    """What the HTTP routes call.

    Args:
        settings: of the server.
        load: opens what the settings name: the adapters by name, as `Store`, and the pool that computes them.

    Raises:
        GatedPromptError: the folder of adapters or the backbone cannot be used.
    """

    def __init__(self, settings: Settings, load: Callable[[Settings], tuple[Any, Any]]) -> None:
        self.store, self.pool = load(settings)
        self.sources = Sources(settings.allow)
        for name in settings.prefetch:
            with suppress(GatedPromptError):  # its requests are told why
                self.take(name)[0].__exit__(None, None, None)
        self.decoder = Decoder(int(settings.megapixels * MEGAPIXEL))

    async def answer(self, name: str, top: int, compute: Compute, client: Client, data: bytes) -> Answer:
        """Turn the bytes of an image into names and scores; `compute` joins the images of several calls in one batch.

        Raises:
            ClientGoneError: nobody waits for the answer any more.
            GatedPromptError: there is no such adapter, it cannot be used, or the image cannot be read.
        """
        hold, resident = await asyncio.to_thread(self.take, name)
        try:  # whoever calls waits for the end: an adapter stays in use until its batch is computed
            pixels = await self.decoder.prepare(data, resident.predictor, client)
            logits = await compute(Item(pixels, resident, client))
        finally:
            hold.__exit__(None, None, None)
        if logits is None:
            raise ClientGoneError
        if not logits.isfinite().all():
            raise AdapterMismatchError(
                f"the scores of adapter {name!r} for this image are not finite. Train it again."
            )
        predictor = resident.predictor
        found = [Prediction(name=one, score=score) for one, score in predictor.answer(logits, top)]
        return Answer(adapter=name, sha256=resident.sha256, problem=predictor.problem, predictions=found)

    async def features(
        self, reads: Reads, blocks: list[int], compute: Compute, client: Client, data: bytes
    ) -> Features:
        """The frozen features (len(blocks), F) of the bytes of an image, computed in the same batches.

        Raises:
            ClientGoneError: nobody waits for the answer any more.
            GatedPromptError: the backbone has no such features, or the image cannot be read.
        """
        reader = await asyncio.to_thread(self.pool.frozen, reads, blocks)
        pixels = await self.decoder.prepare(data, reader.predictor, client)
        found = await compute(Item(pixels, reader, client))
        if found is None:
            raise ClientGoneError
        return Features(blocks=blocks, reads=reads, features=found.view(len(blocks), -1).tolist())

    def take(self, name: str) -> tuple[AbstractContextManager[Loaded], Loaded]:
        """Load the adapter if necessary. The context manager releases it.

        Raises:
            GatedPromptError: there is no such adapter, or it cannot be used.
        """
        folder = self.store.find(name)
        for _ in range(TRIES):
            hold = self.pool.hold(folder)
            try:
                return hold, hold.__enter__()
            except GatedPromptError:
                before, folder = folder, self.store.find(name)
                if folder == before:
                    raise
        raise GatedPromptError(f"adapter {name!r} kept being replaced while it was read. Try again.")

    def logits(self, items: list[Item]) -> list[Tensor | None]:
        """Compute one mixed batch per image size. None for images that nobody waits for."""
        sizes: dict[torch.Size, list[Item]] = defaultdict(list)
        for item in items:
            if not item.client.gone:
                sizes[item.pixels.shape].append(item)
        found: dict[Item, Tensor] = {}
        for group in sizes.values():
            pixels = torch.stack([item.pixels for item in group])
            found |= zip(group, self.pool.logits(pixels, [item.resident for item in group]), strict=True)
        return [found.get(item) for item in items]

    def add(self, name: str, source: Source) -> AdapterInfo:
        """Copy the adapter, run it once, and only then serve it in place of the one that has the name.

        Raises:
            PermissionError: the source is not allowed.
            GatedPromptError: the adapter cannot be used.
        """
        version = self.store.copy(self.sources, source)
        try:
            with self.pool.hold(version):
                info: AdapterInfo = self.store.describe(name, version)
            served = self.store.publish(version, name)
        except BaseException as error:
            self.pool.forget(version)
            self.store.discard(version)
            if isinstance(error, GatedPromptError):
                raise type(error)(str(error).replace(str(version), source.source)) from error
            raise
        if served != version:
            self.pool.forget(version)
        return self.shown(info)

    def remove(self, name: str) -> None:
        """Stop serving an adapter. Requests in progress are still answered.

        Raises:
            PermissionError: adapters cannot be changed.
            GatedPromptError: there is no such adapter.
        """
        if not self.store.changes:
            raise PermissionError("this server was started without --allow, so its adapters cannot be changed")
        folder = self.store.find(name)
        self.store.delete(name)
        self.pool.forget(folder)

    def adapters(self) -> list[AdapterInfo]:
        """What is served."""
        return [self.shown(one) for one in self.store.describe_all()]

    def shown(self, info: AdapterInfo) -> AdapterInfo:
        """The same without the server's folders."""
        return info.model_copy(update={"error": info.error and public(info.error, str(self.store.root))})


def load_folder(settings: Settings) -> tuple[Store, AdapterPool]:
    """The adapters of a folder, and a backbone of PyTorch that computes them.

    Raises:
        GatedPromptError: the folder or the backbone cannot be used.
    """
    store = Store(settings.adapters, changes=bool(settings.allow))
    return store, load_pool(settings.backbone, int(settings.memory_mb * 1e6), settings.image_side)
