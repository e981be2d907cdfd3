# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Requests for minutes while adapters come, go and are replaced, on PyTorch, on an engine, and beside a dying replica.

Every answer is compared with that of its adapter loaded alone, without a server.
"""

import io
import os
import secrets
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import gevent
import torch
from locust.env import Environment
from PIL import Image

import gated_prompt
from gated_prompt.predictor import read_predictor
from gated_prompt.serving.settings import TOKEN
from gated_prompt.shipped import SHIPPED_BACKBONE

from . import load, plan, records
from .started import Started, started, users_of

TASKS, CLIENTS = 16, 8
SECONDS = 180.0  # of each run
MEMORY = 0.12  # megabytes, for about 11 adapters: the others are loaded again at every request
RUNS: dict[str, dict[str, object]] = {"torch": {}, "engine": {}, "killed": {"replicas": 2, "cpus": 0.5}}


def main(args: Namespace) -> None:
    """Do what has no result yet."""
    path = args.results / "steady.json"
    results = records.read(path)
    os.environ[TOKEN] = secrets.token_hex()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    folder, sources = plan.adapters("tiny", TASKS, args.output_dir), plan.adapters("tiny", 2, args.output_dir)
    for name, special in RUNS.items():
        if name in results:
            continue
        options = plan.served("engine" if name == "engine" else "torch", "tiny", TASKS, args.output_dir)
        options |= {"allow": sources, "memory_mb": MEMORY, **special}
        with started("gated", args.output_dir / f"steady-{name}.log", options) as server:
            remember_expected_answers(server.url, folder)
            found = asked(server, sorted(map(str, sources.iterdir())), kill=name == "killed")
        results |= {"machine": records.machine(), name: found}
        print(name, found, flush=True)
        records.save(path, results)


def asked(server: Started, sources: list[str], kill: bool) -> dict[str, Any]:
    """Ask, add, replace, delete, evict and load. Perhaps kill a replica when half of the time is over."""
    environment = users_of(server.url, load.Churner, churn=sources)
    found: dict[str, Any] = {}
    begin = time.monotonic()
    runner = environment.create_local_runner()
    runner.start(CLIENTS + 1, spawn_rate=CLIENTS + 1)
    gevent.sleep(SECONDS / 2)
    if kill:
        (killed, _), killed_at = server.replicas(), time.monotonic()
        killed.kill()
        while len([one for one in server.replicas() if one.pid != killed.pid]) < 2:
            gevent.sleep(0.2)
        found["seconds_to_the_next"] = round(time.monotonic() - killed_at, 1)
    gevent.sleep(max(0.0, SECONDS - (time.monotonic() - begin)))
    runner.stop()
    found |= counts(environment)
    return found | {"seconds": round(time.monotonic() - begin, 1), "adapters": TASKS, "clients": CLIENTS}


def counts(environment: Environment) -> dict[str, int]:
    """Requests by name, and failures of any."""
    found = {entry.name: entry.num_requests for entry in environment.stats.entries.values()}
    return found | {"failures": environment.stats.total.num_failures}


@torch.no_grad()
def remember_expected_answers(url: str, adapters: Path) -> None:
    """Scores of each image by each adapter alone, as `load` compares them."""
    for folder in sorted(adapters.iterdir()):
        predictor = read_predictor(folder)
        model = gated_prompt.load(predictor.load_base(SHIPPED_BACKBONE), folder).eval()
        for place, data in enumerate(load.IMAGES):
            pixels = predictor.transform()(Image.open(io.BytesIO(data)).convert("RGB"))[None]
            logits = model(pixel_values=pixels).logits[0]
            load.EXPECTED[url, folder.name, place] = dict(predictor.answer(logits, 1000))
