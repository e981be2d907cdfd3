# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Many requests to two replicas while adapters come, go and are replaced, and one replica is killed.

Every answer is compared with that of its adapter loaded alone, without a server.
"""

import io
import os
import secrets
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gevent
import torch
from locust.env import Environment
from PIL import Image

import gated_prompt
from gated_prompt.predictor import read_predictor
from gated_prompt.serving.settings import TOKEN

from . import load, plan, records
from .started import Started, started, users_of

TASKS, REQUESTS, CHANGES, CLIENTS = 16, 10_000, 400, 8
MEMORY = 0.12  # megabytes, for about 11 adapters: the others are loaded again at every request
Options = Mapping[str, object]


def main(args: Namespace) -> None:
    """Do it, unless there are results, and note what happened."""
    path = args.results / "steady.json"
    if records.read(path):
        return
    os.environ[TOKEN] = secrets.token_hex()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    options = {
        "backbone": plan.backbone_folder("tiny", args.output_dir),
        "adapters": plan.adapters("tiny", TASKS, args.output_dir),
        "allow": plan.adapters("tiny", 2, args.output_dir),
    }
    special = {"memory_mb": MEMORY, "replicas": 2, "cpus": 0.5}
    with started("gated", args.output_dir / "steady.log", {**options, **special}) as server:
        found = {"machine": records.machine(), **asked(server, options)}
    print(found, flush=True)
    records.save(path, found)


def asked(server: Started, options: Options) -> dict[str, Any]:
    """Ask, add, replace, delete, evict and load. Kill a replica when half of the requests are answered."""
    remember_expected_answers(server.url, options)
    sources = sorted(map(str, Path(str(options["allow"])).iterdir()))
    environment = users_of(server.url, load.Churner, churn=sources)
    begin = time.monotonic()
    runner = environment.create_local_runner()
    runner.start(CLIENTS + 1, spawn_rate=CLIENTS + 1)
    until(environment, ("classify",), REQUESTS // 2)
    (killed, _), killed_at = server.replicas(), time.monotonic()
    killed.kill()
    while len([one for one in server.replicas() if one.pid != killed.pid]) < 2:
        gevent.sleep(0.2)
    to_the_next = time.monotonic() - killed_at
    until(environment, ("classify",), REQUESTS)
    until(environment, ("add", "replace", "delete"), CHANGES)
    seconds = time.monotonic() - begin
    runner.stop()
    found: dict[str, Any] = counts(environment)
    found |= {"seconds": round(seconds, 1), "seconds_to_the_next_replica": round(to_the_next, 1)}
    return found | {"adapters": TASKS, "clients": CLIENTS}


def until(environment: Environment, names: tuple[str, ...], count: int) -> None:
    """Wait until so many requests of these names have been answered."""
    while sum(one.num_requests for one in environment.stats.entries.values() if one.name in names) < count:
        gevent.sleep(0.2)


def counts(environment: Environment) -> dict[str, int]:
    """Requests by name, and failures of any."""
    found = {entry.name: entry.num_requests for entry in environment.stats.entries.values()}
    return found | {"failures": environment.stats.total.num_failures}


@torch.no_grad()
def remember_expected_answers(url: str, options: Options) -> None:
    """Scores of each image by each adapter alone, as `load` compares them."""
    for folder in sorted(Path(str(options["adapters"])).iterdir()):
        predictor = read_predictor(folder)
        model = gated_prompt.load(predictor.load_base(str(options["backbone"])), folder).eval()
        for place, data in enumerate(load.IMAGES):
            pixels = predictor.transform()(Image.open(io.BytesIO(data)).convert("RGB"))[None]
            logits = model(pixel_values=pixels).logits[0]
            load.EXPECTED[url, folder.name, place] = dict(predictor.answer(logits, 1000))
