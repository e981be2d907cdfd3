# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Many requests while adapters come and go, and while a replica is killed; every answer is compared.

The expected answer is that of each adapter loaded alone, without a server.
"""

import io
import os
import secrets
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gevent
import torch
from locust.env import Environment
from PIL import Image

import gated_prompt
from gated_prompt.predictor import read_predictor
from gated_prompt.serving.settings import TOKEN

from . import load, made, records
from .clients import users_of
from .started import Started, started

TASKS, REQUESTS, CLIENTS = 16, 10_000, 8
MEMORY = 0.12  # megabytes, for about 11 adapters: the others are loaded again at every request
BEFORE, AFTER = 5.0, 10.0  # seconds before a replica is killed, and after another has taken its place
Options = Mapping[str, object]


def main(args: Namespace) -> None:
    """Do what is missing of both and note what happened."""
    os.environ[TOKEN] = secrets.token_hex()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    options = {
        "backbone": made.backbone("tiny", args.output_dir),
        "adapters": made.adapters("tiny", TASKS, args.output_dir),
        "allow": made.adapters("tiny", 1, args.output_dir),
    }
    path = args.results / "steady.json"
    found = records.read(path)
    parts: dict[str, tuple[Callable[[Started, Options], dict[str, Any]], Options]] = {
        "churn": (churn, {"memory_mb": MEMORY}),
        "killed": (killed, {"replicas": 2, "cpus": 0.5}),
    }
    for name, (measure, special) in parts.items():
        if name not in found:
            found["machine"] = records.machine()
            with started("gated", args.output_dir / f"{name}.log", {**options, **special}) as server:
                found[name] = measure(server, options)
            print(name, found[name], flush=True)
            records.save(path, found)


def churn(server: Started, options: Options) -> dict[str, Any]:
    """Add, evict, load and delete adapters while clients ask."""
    remember_expected_answers(server.url, options)
    source = next(Path(str(options["allow"])).iterdir())
    environment = users_of(server.url, load.Churner, churn=str(source))
    begin = time.monotonic()
    runner = environment.create_local_runner()
    runner.start(CLIENTS + 1, spawn_rate=CLIENTS + 1)
    while environment.stats.get("classify", "POST").num_requests < REQUESTS:
        gevent.sleep(0.2)
    seconds = time.monotonic() - begin
    runner.stop()
    return counts(environment) | {"seconds": round(seconds, 1), "adapters": TASKS, "clients": CLIENTS}


def killed(server: Started, options: Options) -> dict[str, Any]:
    """Kill one of two replicas; clients repeat the requests that it had in hand."""
    remember_expected_answers(server.url, options)
    environment = users_of(server.url)
    runner = environment.create_local_runner()
    runner.start(CLIENTS, spawn_rate=CLIENTS)
    gevent.sleep(BEFORE)
    gone = server.replicas()[0]
    gone.kill()
    begin = time.monotonic()
    while len([one for one in server.replicas() if one.pid != gone.pid]) < 2:
        gevent.sleep(0.2)
    seconds = time.monotonic() - begin
    gevent.sleep(AFTER)
    runner.stop()
    return counts(environment) | {"seconds_to_the_next": round(seconds, 1), "clients": CLIENTS}


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
