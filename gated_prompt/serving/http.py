# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The deployment: one backbone, many adapters, requests that arrive together in one mixed batch.

Ray pickles the class by value, with the globals that it names, while replicas import other modules. So whatever a
process has only once, such as a metric, must not be a global here.
"""

import asyncio
import hmac
import os
import shutil
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi import Path as InPath
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from ray import serve
from torch import Tensor

from ..errors import AdapterNameError, DamagedAdapterError, DataError, GatedPromptError
from .backbone import load_pool
from .loopback import keep_to_loopback
from .metrics import count, count_batch, exposition
from .pool import PoolFullError
from .resident import Resident
from .schemas import AdapterInfo, Answer, Prediction, Source
from .settings import TOKEN, Settings
from .store import NAME, Store, describe
from .uploads import read_image, read_upload

BUSY = {"Retry-After": "1"}
UPLOAD = {"requestBody": {"required": True, "content": {"image/*": {}, "multipart/form-data": {}}}}
SOURCE = {"requestBody": {"required": True, "content": {"application/json": {"schema": Source.model_json_schema()}}}}
LONGEST_SOURCE = 10_000  # bytes
AdapterName = Annotated[str, InPath(pattern=NAME)]

app = FastAPI(title="gated_prompt", description="Many visual tasks on one frozen backbone")
app.middleware("http")(count)


@app.exception_handler(GatedPromptError)
@app.exception_handler(PermissionError)
async def refuse(request: Request, error: Exception) -> JSONResponse:
    """Answer with the package's message and the matching status code."""
    kinds = {PoolFullError: 503, AdapterNameError: 404, DataError: 400, PermissionError: 403}
    code = next((code for kind, code in kinds.items() if isinstance(error, kind)), 422)
    return JSONResponse({"detail": str(error)}, code, headers=BUSY if code == 503 else None)


def authorize(request: Request) -> None:
    """Require the bearer token, if one was set."""
    token = os.environ.get(TOKEN)
    sent = request.headers.get("authorization", "")
    if token and not hmac.compare_digest(sent.encode(), f"Bearer {token}".encode()):
        raise HTTPException(401, "a bearer token is needed", headers={"WWW-Authenticate": "Bearer"})


@dataclass(eq=False)
class Item:
    """One image of a batch."""

    pixels: Tensor
    resident: Resident


@serve.deployment
@serve.ingress(app)
class Server:
    """One replica: a backbone, the adapters in its memory, and the HTTP routes."""

    def __init__(self, values: dict[str, Any], load: Callable[[str, int], Any] = load_pool) -> None:
        self.settings = Settings(**values)
        if self.settings.address is None:
            keep_to_loopback()
        torch.set_num_threads(max(1, int(self.settings.cpus)))
        self.store = Store(self.settings.adapters, self.settings.allow)
        self.pool = load(self.settings.backbone, int(self.settings.memory_mb * 1e6))
        self.computing = ThreadPoolExecutor(1)  # separate: the threads that decode and load may all be busy
        self.uploads, self.tasks = 0, set[asyncio.Task[Answer]]()
        self.changing = asyncio.Lock()
        batch: Any = self.compute
        batch.set_max_batch_size(self.settings.batch_size)
        batch.set_batch_wait_timeout_s(self.settings.batch_wait_ms / 1000)

    @app.post("/v1/classify/{adapter}", openapi_extra=UPLOAD)
    async def classify(
        self, request: Request, adapter: AdapterName, top_k: Annotated[int, Query(ge=1, le=1000)] = 5
    ) -> Answer:
        """Classify the image in the body, or in the one file of a form."""
        if self.uploads + len(self.tasks) >= self.settings.queue:
            raise HTTPException(503, "too many requests are waiting; try again", headers=BUSY)
        self.uploads += 1
        try:
            data = await read_upload(request, int(self.settings.upload_mb * 1e6), self.settings.upload_seconds)
        finally:
            self.uploads -= 1
        task = asyncio.create_task(self.answer(adapter, data, top_k))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        try:  # shielded: an adapter stays in use until its batch is computed, even if nobody waits any more
            return await asyncio.wait_for(asyncio.shield(task), self.settings.seconds)
        except TimeoutError:
            raise HTTPException(504, f"no answer within {self.settings.seconds:g} s", headers=BUSY) from None

    async def answer(self, name: str, data: bytes, top: int) -> Answer:
        """Turn the bytes of an image into names and scores."""
        hold, resident = await asyncio.to_thread(self.take, name)
        try:
            pixels = await asyncio.to_thread(self.prepare, data, resident)
            logits = await self.compute(Item(pixels, resident))
            found = resident.predictor.answer(logits, top)
        finally:
            hold.__exit__(None, None, None)
        predictions = [Prediction(name=one, score=score) for one, score in found]
        return Answer(
            adapter=name, sha256=resident.sha256, problem=resident.predictor.problem, predictions=predictions
        )

    def take(self, name: str) -> tuple[AbstractContextManager[Resident], Resident]:
        """Load the adapter if necessary; the context manager releases it."""
        hold = self.pool.hold(self.store.find(name))
        try:
            return hold, hold.__enter__()
        except DamagedAdapterError:
            self.store.find(name)  # raises AdapterNameError if it was deleted meanwhile
            raise

    def prepare(self, data: bytes, resident: Resident) -> Tensor:
        """Preprocess an image as in this adapter's training."""
        return resident.predictor.transform()(read_image(data, self.settings.megapixels))

    @serve.batch
    async def compute(self, items: list[Item]) -> list[Tensor]:
        """Logits of images that arrived together, each from its own adapter."""
        count_batch(len(items))
        return await asyncio.get_running_loop().run_in_executor(self.computing, self.logits, items)

    def logits(self, items: list[Item]) -> list[Tensor]:
        """Compute one mixed batch per image size."""
        sizes: dict[torch.Size, list[Item]] = defaultdict(list)
        for item in items:
            sizes[item.pixels.shape].append(item)
        found: dict[Item, Tensor] = {}
        for group in sizes.values():
            pixels = torch.stack([item.pixels for item in group])
            found |= zip(group, self.pool.logits(pixels, [item.resident for item in group]), strict=True)
        return [found[item] for item in items]

    @app.get("/v1/adapters")
    async def adapters(self) -> list[AdapterInfo]:
        """List the served adapters."""
        return await asyncio.to_thread(self.store.describe_all)

    @app.put("/v1/adapters/{name}", dependencies=[Depends(authorize)], openapi_extra=SOURCE)
    async def put(self, request: Request, name: AdapterName) -> AdapterInfo:
        """Serve an adapter under this name, in place of the one that has it, after a trial run."""
        data = await read_upload(request, LONGEST_SOURCE, self.settings.upload_seconds)  # FastAPI itself sets no limit
        try:
            body = Source.model_validate_json(data)
        except ValidationError as error:
            raise HTTPException(422, f'the body must be {{"source": "a folder or Hub id"}} ({error})') from None
        async with self.changing:
            return await asyncio.to_thread(self.take_in, name, body)

    def take_in(self, name: str, body: Source) -> AdapterInfo:
        """Copy the adapter, run it once, and only then serve it."""
        copy = self.store.fetch(body.source, body.revision)
        try:
            with self.pool.hold(copy):
                pass
            folder = self.store.publish(copy, name)
        finally:
            self.pool.forget(copy)
            shutil.rmtree(copy, ignore_errors=True)
        return describe(folder)

    @app.delete("/v1/adapters/{name}", dependencies=[Depends(authorize)], status_code=204)
    async def delete(self, name: AdapterName) -> None:
        """Stop serving an adapter; requests in progress are still answered."""
        if not self.settings.allow:
            raise PermissionError("this server was started without --allow, so its adapters cannot be changed")
        async with self.changing:
            self.pool.forget(await asyncio.to_thread(self.store.delete, name))

    @app.get("/healthz")
    async def healthz(self) -> dict[str, str]:
        """Answer as soon as the backbone is loaded."""
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics(self) -> Response:
        """Metrics of the replica that answers, for Prometheus."""
        text = exposition(len(self.pool), self.pool.nbytes, self.uploads + len(self.tasks))
        return Response(text, media_type="text/plain; version=0.0.4")


def build(args: dict[str, Any]) -> Any:
    """The application for `serve run`, from the values of `Settings`; the number of replicas is Serve's own option."""
    server: Any = Server
    return server.bind(args)
