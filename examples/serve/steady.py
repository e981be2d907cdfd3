# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Many requests while adapters come and go, and while a replica is killed: every answer is compared.

What is right is what each adapter says when it is loaded alone, without a server.
"""

import io
import json
import os
import secrets
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import torch
from locust.env import Environment
from PIL import Image
from transformers import AutoModelForImageClassification

import gated_prompt
from gated_prompt.sharing.predictor import read_predictor

from . import load, made, measured
from .settings import TOKEN
from .started import Started, started

TASKS, REQUESTS, CLIENTS = 16, 10_000, 8
MEMORY = 0.12  # megabytes, for about 11 adapters: the others are loaded again whenever they are asked for
BEFORE, AFTER = 5.0, 10.0  # seconds before a replica is killed, and after another has taken its place


def main(args: Namespace) -> None:
    """Do what is missing of both and note what happened."""
    os.environ[TOKEN] = secrets.token_hex()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    options: dict[str, object] = {
        "backbone": made.backbone("tiny", args.output_dir),
        "adapters": made.adapters("tiny", TASKS, args.output_dir),
        "allow": made.adapters("tiny", 1, args.output_dir),
    }
    path = args.results / "steady.json"
    found: measured.Results = json.loads(path.read_text()) if path.is_file() else {"machine": measured.machine()}
    parts: dict[str, tuple[Callable[..., dict[str, Any]], dict[str, object]]] = {
        "churn": (churn, {"memory_mb": MEMORY}),
        "killed": (killed, {"replicas": 2, "cpus": 0.5}),
    }
    for name, (measure, special) in parts.items():
        if name not in found:
            with started("gated", args.output_dir / f"{name}.log", options | special) as server:
                found[name] = measure(server, options)
            print(name, found[name], flush=True)
            measured.save(path, found)


def churn(server: Started, options: dict[str, object]) -> dict[str, Any]:
    """Adapters are put up, evicted, loaded and deleted while clients ask."""
    remember_right_answers(server.url, options)
    source = next(Path(str(options["allow"])).iterdir())
    environment = Environment(
        user_classes=[load.Client, load.Churner],
        host=server.url,
        parsed_options=Namespace(tasks=0, churn=str(source)),
        stop_timeout=60,
    )
    begin = time.monotonic()
    runner = environment.create_local_runner()
    runner.start(CLIENTS + 1, spawn_rate=CLIENTS + 1)
    while environment.stats.get("classify", "POST").num_requests < REQUESTS:
        gevent.sleep(0.2)
    seconds = time.monotonic() - begin
    runner.stop()
    return counts(environment) | {"seconds": round(seconds, 1), "adapters": TASKS, "clients": CLIENTS}


def killed(server: Started, options: dict[str, object]) -> dict[str, Any]:
    """One of two replicas is killed; clients send again what was in its hands."""
    remember_right_answers(server.url, options)
    environment = Environment(
        user_classes=[load.Client], host=server.url, parsed_options=Namespace(tasks=0, churn=""), stop_timeout=60
    )
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
def remember_right_answers(url: str, options: dict[str, object]) -> None:
    """Scores of each picture by each adapter alone, as `load` compares them."""
    for folder in sorted(Path(str(options["adapters"])).iterdir()):
        predictor = read_predictor(folder)
        base: Any = AutoModelForImageClassification.from_pretrained(
            options["backbone"], num_labels=len(predictor.names), ignore_mismatched_sizes=True, dtype="float32"
        )
        model = gated_prompt.load(base, folder).eval()
        for place, data in enumerate(load.PICTURES):
            pixels = predictor.transform()(Image.open(io.BytesIO(data)).convert("RGB"))[None]
            logits = model(pixel_values=pixels).logits[0]
            load.FIRST[url, folder.name, place] = dict(predictor.answer(logits, 1000))
