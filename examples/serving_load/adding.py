# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Tasks that are added to a running server: how long that takes, and what other clients notice."""

import os
import random
import secrets
import time
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import gevent
import requests

from gated_prompt.serving.settings import TOKEN

from . import plan, records
from .load import IMAGES
from .overload import codes
from .started import SECONDS, Started, started

TASKS, CLIENTS, ADDED, CALM = 16, 8, 20, 15.0  # the last: seconds before the first task is added
PAUSE = {"tiny": 0.5, "small": 2.0}  # seconds between tasks that are added
Asked = tuple[float, float, int]  # begin, seconds, status


def main(args: Namespace) -> None:
    """Measure what is missing."""
    path = args.results / "adding.json"
    results = records.read(path)
    os.environ[TOKEN] = secrets.token_hex()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for backbone in [args.backbone] if args.backbone else plan.BACKBONES:
        sources = plan.adapters(backbone, ADDED, args.output_dir)
        for runtime in plan.RUNTIMES:
            key = f"{backbone} {runtime}"
            if key not in results:
                options = plan.served(runtime, backbone, TASKS, args.output_dir) | {"allow": sources}
                with started("gated", args.output_dir / "adding.log", options) as server:
                    server.load(TASKS)
                    results[key] = measured(server, sorted(map(str, sources.iterdir())), PAUSE[backbone])
                results["machine"] = records.machine()
                print(key, results[key], flush=True)
                records.save(path, results)


def measured(server: Started, sources: Sequence[str], pause: float) -> dict[str, Any]:
    """Milliseconds of adding, of the first answer, and of the other clients with and without."""
    url, names, stop = server.url, server.names(), gevent.event.Event()
    clients = [gevent.spawn(ask, url, names, stop) for _ in range(CLIENTS)]
    gevent.sleep(CALM)
    begin, added, first = time.monotonic(), [], []
    for number, source in enumerate(sources):
        added.append(put(url, f"new-{number}", source))
        first.append(classify(url, f"new-{number}"))
        gevent.sleep(pause)
    stop.set()
    gevent.joinall(clients)
    asked: list[Asked] = [one for client in clients for one in client.value]
    busy = [(start, start + took) for start, took, _ in added]
    beside = [one for one in asked if any(one[0] < end and one[0] + one[1] > start for start, end in busy)]
    calm = [one for one in asked if one[0] + one[1] < begin]
    for added_name in range(len(sources)):
        headers = {"Authorization": f"Bearer {os.environ[TOKEN]}"}
        requests.delete(f"{url}/v1/adapters/new-{added_name}", headers=headers, timeout=SECONDS).raise_for_status()
    return {
        "added": spread(added),
        "first_answer": spread(first),
        "calm": spread(calm),
        "beside": spread(beside),
        "codes": codes([*asked, *added, *first]),
    }


def ask(url: str, names: list[str], stop: Any) -> list[Asked]:
    """Random questions, one after the other, until `stop`."""
    found = []
    while not stop.is_set():
        found.append(classify(url, random.choice(names)))
    return found


def classify(url: str, name: str) -> Asked:
    """One question."""
    begin = time.monotonic()
    answer = requests.post(f"{url}/v1/classify/{name}", data=random.choice(IMAGES), timeout=SECONDS)
    return begin, time.monotonic() - begin, answer.status_code


def put(url: str, name: str, source: str) -> Asked:
    """Add a task."""
    begin, headers = time.monotonic(), {"Authorization": f"Bearer {os.environ[TOKEN]}"}
    answer = requests.put(f"{url}/v1/adapters/{name}", json={"source": source}, headers=headers, timeout=SECONDS)
    return begin, time.monotonic() - begin, answer.status_code


def spread(asked: Sequence[Asked]) -> dict[str, float]:
    """How many, and their milliseconds."""
    times = sorted(1000 * took for _, took, _ in asked)
    found = {f"p{share}_ms": round(times[share * len(times) // 100], 1) for share in (50, 99)}
    return {"count": len(times), **found, "max_ms": round(times[-1], 1)}
