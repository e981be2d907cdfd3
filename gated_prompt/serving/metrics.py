# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Metrics of one replica for Prometheus. The label `replica` names it."""

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable

from fastapi import Request, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.requests import ClientDisconnect

REGISTRY = CollectorRegistry()
LABELS = {"replica": f"{socket.gethostname()}-{os.getpid()}"}  # keeps its series apart from those of other replicas
REQUESTS = Counter("gated_prompt_requests", "Requests", ["route", "code", *LABELS], registry=REGISTRY)
LATENCY = Histogram("gated_prompt_latency_seconds", "Time to answer", ["route", *LABELS], registry=REGISTRY)
BATCHES = Histogram(
    "gated_prompt_batch_size",
    "Images computed together",
    [*LABELS],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128),
    registry=REGISTRY,
)
WAITING = Gauge("gated_prompt_requests_in_hand", "Requests not answered yet", [*LABELS], registry=REGISTRY)
ADAPTERS = Gauge("gated_prompt_adapters_in_memory", "Adapters in memory", [*LABELS], registry=REGISTRY)
BYTES = Gauge("gated_prompt_adapter_bytes", "Memory of the adapters", [*LABELS], registry=REGISTRY)


async def count(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Middleware that counts a request and measures its time."""
    begin, code = time.perf_counter(), 500
    try:
        response = await call_next(request)
        code = response.status_code
        return response
    except (asyncio.CancelledError, ClientDisconnect):
        code = 499  # the client hung up
        raise
    finally:
        # The pattern of the route, so that clients cannot create series at will.
        route = getattr(request.scope.get("route"), "path", "other")
        REQUESTS.labels(route=route, code=code, **LABELS).inc()
        LATENCY.labels(route=route, **LABELS).observe(time.perf_counter() - begin)


def count_batch(size: int) -> None:
    """Count a batch of this size."""
    BATCHES.labels(**LABELS).observe(size)


def exposition(adapters: int, nbytes: int, waiting: int) -> bytes:
    """The text for Prometheus."""
    ADAPTERS.labels(**LABELS).set(adapters)
    BYTES.labels(**LABELS).set(nbytes)
    WAITING.labels(**LABELS).set(waiting)
    return generate_latest(REGISTRY)
