# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Ordinary requests beside an attack by images that are small as files and large in memory."""

import io
import time
from argparse import Namespace
from collections import Counter
from typing import Any

import gevent
import psutil
import requests
from PIL import Image

from . import plan, records
from .load import IMAGES
from .started import Started, started

ATTACKERS, CLIENTS = 24, 2
BEFORE, DURING = 3.0, 15.0  # seconds before the attack, and of it
ATTACKS = {"25 megapixels": (5000, 5000), "12 megapixels": (4000, 3000)}  # refused, and the largest that is not
PATIENCE = 60  # seconds that any client waits for its answer


def main(args: Namespace) -> None:
    """Measure what is missing."""
    args.output_dir.mkdir(parents=True, exist_ok=True)
    path = args.results / "overload.json"
    found = records.read(path)
    adapters = plan.adapters("tiny", 1, args.output_dir)
    options = {"backbone": plan.backbone_folder("tiny", args.output_dir), "adapters": adapters}
    for name, size in ATTACKS.items():
        if name not in found:
            found["machine"] = records.machine()
            with started("gated", args.output_dir / "overload.log", options) as server:
                found[name] = attacked(server, png(*size))
            print(name, found[name], flush=True)
            records.save(path, found)


def png(width: int, height: int) -> bytes:
    """An image of one colour: many pixels in few bytes."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), "grey").save(file, "PNG")
    return file.getvalue()


def attacked(server: Started, image: bytes) -> dict[str, Any]:
    """Times of ordinary clients while attackers send this image over and over, each waiting for its answer."""
    url = f"{server.url}/v1/classify/{server.names()[0]}"
    server.load(1)
    (replica,) = server.replicas()
    end = time.monotonic() + BEFORE + DURING
    ordinary = [gevent.spawn(ask, url, IMAGES[place], end) for place in range(CLIENTS)]
    gevent.sleep(BEFORE)
    calm = server.megabytes()
    begin = time.monotonic()
    attackers = [gevent.spawn(ask, url, image, end) for _ in range(ATTACKERS)]
    peak = calm
    while time.monotonic() < end:
        peak = max(peak, float(psutil.Process(replica.pid).memory_info().rss) / 1e6)
        gevent.sleep(0.05)
    gevent.joinall([*ordinary, *attackers])
    answers = [one for client in ordinary for one in client.value]
    times = sorted(took for start, took, _ in answers if start >= begin)
    return {
        "bytes": len(image),
        "ordinary": len(times),
        "p50_ms": round(1000 * times[len(times) // 2]),
        "p95_ms": round(1000 * times[int(0.95 * len(times))]),
        "max_ms": round(1000 * times[-1]),
        "ordinary_codes": codes(answers),
        "attack_codes": codes([one for client in attackers for one in client.value]),
        "megabytes_before": round(calm),
        "megabytes_peak": round(peak),
    }


def ask(url: str, image: bytes, end: float) -> list[tuple[float, float, int]]:
    """Start, seconds and status of each request until `end`, one after the other."""
    found = []
    with requests.Session() as session:
        while (begin := time.monotonic()) < end:
            code = session.post(url, data=image, timeout=PATIENCE).status_code
            found.append((begin, time.monotonic() - begin, code))
    return found


def codes(answers: list[tuple[float, float, int]]) -> dict[str, int]:
    """How many answers have each status."""
    return {str(code): count for code, count in sorted(Counter(code for _, _, code in answers).items())}
