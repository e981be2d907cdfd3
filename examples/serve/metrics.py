# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What Prometheus reads at /metrics: of one replica, which the label names."""

import os
import socket
import time
from collections.abc import Awaitable, Callable

from fastapi import Request, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

REGISTRY = CollectorRegistry()
LABELS = {"replica": f"{socket.gethostname()}-{os.getpid()}"}  # its series stay apart from those of others
REQUESTS = Counter("gated_prompt_requests", "Requests", ["route", "code", *LABELS], registry=REGISTRY)
LATENCY = Histogram("gated_prompt_latency_seconds", "Time to the answer", ["route", *LABELS], registry=REGISTRY)
BATCHES = Histogram(
    "gated_prompt_batch_size",
    "Pictures computed together",
    [*LABELS],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128),
    registry=REGISTRY,
)
WAITING = Gauge("gated_prompt_requests_in_hand", "Requests without an answer yet", [*LABELS], registry=REGISTRY)
ADAPTERS = Gauge("gated_prompt_adapters_in_memory", "Adapters in memory", [*LABELS], registry=REGISTRY)
BYTES = Gauge("gated_prompt_adapter_bytes", "Memory of these adapters", [*LABELS], registry=REGISTRY)


async def count(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Middleware: one more request, and the time it took."""
    begin, code = time.perf_counter(), 500
    try:
        response = await call_next(request)
        code = response.status_code
        return response
    finally:
        route = getattr(request.scope.get("route"), "path", "other")  # the pattern: names of strangers make no series
        REQUESTS.labels(route=route, code=code, **LABELS).inc()
        LATENCY.labels(route=route, **LABELS).observe(time.perf_counter() - begin)


def count_batch(size: int) -> None:
    """One more batch, of this many pictures."""
    BATCHES.labels(**LABELS).observe(size)


def exposition(adapters: int, nbytes: int, waiting: int) -> bytes:
    """The text that Prometheus reads."""
    ADAPTERS.labels(**LABELS).set(adapters)
    BYTES.labels(**LABELS).set(nbytes)
    WAITING.labels(**LABELS).set(waiting)
    return generate_latest(REGISTRY)
