# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The deployment: one backbone, many adapters, requests that arrive together in one mixed batch.

Ray pickles the class by value, with the globals that it names, while replicas import other modules. So whatever a
process has only once, such as a metric, must not be a global here.
"""

import asyncio
import io
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import torch
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi import Path as InPath
from fastapi.responses import JSONResponse
from pydantic import Field, ValidationError
from ray import serve
from torch import Tensor

from ..errors import AdapterNameError, DataError, GatedPromptError
from ..heads import Reads
from .cache import PoolFullError
from .metrics import count, count_batch, exposition
from .ray_cluster import keep_to_loopback
from .replica import Item, Replica, load_folder
from .schemas import AdapterInfo, Answer, Features, Source, public
from .settings import Settings, is_authorized, read_token
from .store import NAME
from .uploads import Client, read_upload

BUSY = {"Retry-After": "1"}
UPLOAD = {"requestBody": {"required": True, "content": {"image/*": {}, "multipart/form-data": {}}}}
SOURCE = {"requestBody": {"required": True, "content": {"application/json": {"schema": Source.model_json_schema()}}}}
T = TypeVar("T")
LONGEST_SOURCE = 10_000  # bytes
TopK = Annotated[int, Query(ge=1, le=1000)]
AdapterName = Annotated[str, InPath(pattern=NAME)]

app = FastAPI(title="gated_prompt", description="Many visual tasks on one frozen backbone")
app.middleware("http")(count)


@app.exception_handler(GatedPromptError)
@app.exception_handler(PermissionError)
async def refuse(request: Request, error: Exception) -> JSONResponse:
    """Answer with the package's message and the matching status code."""
    kinds = {PoolFullError: 503, AdapterNameError: 404, DataError: 400, PermissionError: 403}
    code = next((code for kind, code in kinds.items() if isinstance(error, kind)), 422)
    text = str(error) if code == 403 else public(str(error))  # 403 quotes the client
    return JSONResponse({"detail": text}, code, headers=BUSY if code == 503 else None)


@serve.deployment
@serve.ingress(app)
class Server:
    """The HTTP routes of one replica, and its queues."""

    def __init__(self, values: dict[str, Any], load: Callable[[Settings], tuple[Any, Any]] = load_folder) -> None:
        self.settings = Settings(**values)
        if self.settings.address is None:
            keep_to_loopback()
        torch.set_num_threads(max(1, int(self.settings.cpus)))
        self.token = read_token(self.settings.token_file)
        self.replica = Replica(self.settings, load)
        self.computing = ThreadPoolExecutor(1)  # separate: the threads that decode and load may all be busy
        self.uploads, self.tasks = 0, set[asyncio.Task[Any]]()
        self.changing = asyncio.Lock()
        batch: Any = self.compute
        batch.set_max_batch_size(self.settings.batch_size)
        batch.set_batch_wait_timeout_s(self.settings.batch_wait_ms / 1000)

    @app.post("/v1/classify/{adapter}", openapi_extra=UPLOAD)
    async def classify(self, request: Request, adapter: AdapterName, top_k: TopK = 5) -> Answer:
        """Classify the image in the body, or in the one file of a form."""
        (answer,) = await self.answers(request, [adapter], top_k)
        return answer

    @app.post("/v1/classify", openapi_extra=UPLOAD)
    async def classify_by_several(
        self,
        request: Request,
        adapters: Annotated[list[Annotated[str, Field(pattern=NAME)]], Query(min_length=1)],
        top_k: TopK = 5,
    ) -> list[Answer]:
        """Classify one image by several adapters, which see it in one batch."""
        most = self.settings.batch_size
        if len(adapters) > most:
            raise HTTPException(422, f"the request names {len(adapters)} adapters. The limit is {most}.")
        return await self.answers(request, adapters, top_k)

    @app.post("/v1/embed", openapi_extra=UPLOAD, response_model=Features)
    async def embed(
        self,
        request: Request,
        blocks: Annotated[list[int], Query(min_length=1, max_length=100)],
        reads: Reads = "both",
        format: Literal["json", "npy"] = "json",
    ) -> Any:
        """Frozen features of the image, after these blocks, as the probes of `train` read them."""
        (found,) = await self.finished(request, [partial(self.replica.features, reads, blocks, self.compute)])
        if format == "json":
            return found
        file = io.BytesIO()
        np.save(file, np.array(found.features, dtype=np.float32))
        return Response(file.getvalue(), media_type="application/octet-stream")

    async def answers(self, request: Request, adapters: list[str], top_k: int) -> list[Answer]:
        """What each adapter says of the image that was sent."""
        return await self.finished(
            request, [partial(self.replica.answer, adapter, top_k, self.compute) for adapter in adapters]
        )

    async def finished(
        self, request: Request, works: list[Callable[[Client, bytes], Coroutine[Any, Any, T]]]
    ) -> list[T]:
        """What these find out about the image that was sent, within the limits of the server."""
        if self.uploads + len(self.tasks) + len(works) > self.settings.queue:
            raise HTTPException(503, "too many requests are waiting. Try again.", headers=BUSY)
        self.uploads += 1
        try:
            data = await read_upload(request, int(self.settings.upload_mb * 1e6), self.settings.upload_seconds)
        finally:
            self.uploads -= 1
        client = Client()
        tasks = [asyncio.create_task(work(client, data)) for work in works]
        for task in tasks:
            self.tasks.add(task)
            task.add_done_callback(self.end)
        try:  # shielded: an adapter stays in use until its batch is computed, even if nobody waits any more
            return await asyncio.wait_for(asyncio.shield(asyncio.gather(*tasks)), self.settings.seconds)
        except TimeoutError:
            raise HTTPException(504, f"no answer within {self.settings.seconds:g} s", headers=BUSY) from None
        finally:
            client.gone = True  # the client hung up, or it has its answer

    def end(self, task: asyncio.Task[Any]) -> None:
        """Note that a task has ended. Asking for its error keeps asyncio from logging one that nobody waits for."""
        self.tasks.discard(task)
        if not task.cancelled():
            task.exception()

    @serve.batch
    async def compute(self, items: list[Item]) -> list[Tensor | None]:
        """Logits of images that arrived together, each from its own adapter."""
        count_batch(len(items))
        return await asyncio.get_running_loop().run_in_executor(self.computing, self.replica.logits, items)

    @app.get("/v1/adapters")
    async def adapters(self) -> list[AdapterInfo]:
        """List the served adapters."""
        return await asyncio.to_thread(self.replica.adapters)

    @app.put("/v1/adapters/{name}", openapi_extra=SOURCE)
    async def put(self, request: Request, name: AdapterName) -> AdapterInfo:
        """Serve an adapter under this name, in place of the one that has it, after a trial run."""
        self.authorize(request)
        data = await read_upload(request, LONGEST_SOURCE, self.settings.upload_seconds)  # FastAPI itself sets no limit
        try:
            body = Source.model_validate_json(data)
        except ValidationError as error:
            fault = error.errors()[0]["msg"]
            raise HTTPException(422, f'the body must be {{"source": "a folder or Hub id"}} ({fault})') from None
        async with self.changing:
            return await asyncio.to_thread(self.replica.add, name, body)

    @app.delete("/v1/adapters/{name}", status_code=204)
    async def delete(self, request: Request, name: AdapterName) -> None:
        """Stop serving an adapter; requests in progress are still answered."""
        self.authorize(request)
        async with self.changing:
            await asyncio.to_thread(self.replica.remove, name)

    def authorize(self, request: Request) -> None:
        """Require the bearer token, if there is one."""
        if not is_authorized(self.token, request.headers.get("authorization", "")):
            raise HTTPException(401, "a bearer token is needed", headers={"WWW-Authenticate": "Bearer"})

    @app.get("/healthz")
    async def healthz(self) -> dict[str, str]:
        """Answer as soon as the backbone is loaded."""
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics(self) -> Response:
        """Metrics of the replica that answers, for Prometheus."""
        pool = self.replica.pool
        text = exposition(len(pool), pool.nbytes, self.uploads + len(self.tasks))
        return Response(text, media_type="text/plain; version=0.0.4")


def build(args: dict[str, Any]) -> Any:
    """The application for `serve run`, from the values of `Settings`. The number of replicas is Serve's own option."""
    server: Any = Server
    return server.bind(args)
