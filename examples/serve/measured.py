# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Times and memory by number of tasks and of clients, in rounds: each visits every cell once.

So a slow minute of the machine hits all that are compared. What was measured is written after every cell, and a second
call measures the rest.
"""

import json
import os
import platform
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gevent
import peft
import ray
import requests
import torch
import transformers
from locust.env import Environment

from . import load, made
from .started import Started, started

COUNTS = (1, 4, 16, 64)
ONE = "one"  # the server with one adapter; the others may have 64
SETTLE = 1.0  # seconds before a cell is timed
HEAVIEST, LONG, SHORT = 32, 20.0, 5.0  # clients and seconds of the load before memory is measured
Results = dict[str, Any]


def cells(contenders: list[str], counts: list[int], users: list[int]) -> Iterator[tuple[str, int, int]]:
    """Contender, tasks and clients, in the order of a round."""
    for clients in users:
        for count in counts:
            for name in contenders:
                if (name == ONE) == (count == 1) or name in ("lora", "full"):
                    yield name, count, clients


def main(args: Namespace) -> None:
    """Measure what is missing of this backbone."""
    path: Path = args.results / f"{args.kind}.json"
    results: Results = json.loads(path.read_text()) if path.is_file() else {}
    results |= {"machine": machine(), "backbone": made.KINDS[args.kind].label, "seconds": args.seconds}
    results |= {"prompts": made.KINDS[args.kind].prompts}
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        servers: dict[str, Started] = {}
        for name in args.contenders:
            options = {
                "backbone": made.backbone(args.kind, args.output_dir),
                "adapters": made.adapters(args.kind, 1 if name == ONE else max(COUNTS), args.output_dir),
            }
            servers[name] = stack.enter_context(started(name, args.output_dir / f"{name}.log", options))
            remember(servers[name], name, args.counts, results)
            save(path, results)
        if args.wait:
            input("every task is in memory; press Enter to time")
        for number in range(args.rounds):
            for name, count, clients in cells(args.contenders, args.counts, args.users):
                found = results.setdefault("cells", {}).setdefault(f"{name} {count} {clients}", [])
                if len(found) <= number:
                    found.append(under_load(servers[name].url, count, clients, args.seconds))
                    print(number, name, count, clients, found[-1], flush=True)
                    save(path, results)
        print("measured: all", flush=True)


def remember(server: Started, name: str, counts: list[int], results: Results) -> None:
    """Note the memory after heavy load, of more and more tasks: each is loaded when it is asked for."""
    memory = results.setdefault("memory", {})
    under_load(server.url, 1, HEAVIEST, LONG)  # what activations take grows with the load, not with the tasks
    for count in [1] if name == ONE else counts:
        for task in server.names()[:count]:
            answer = requests.post(f"{server.url}/v1/classify/{task}", data=load.PICTURES[0], timeout=HEAVIEST)
            answer.raise_for_status()
        under_load(server.url, count, HEAVIEST, SHORT)
        memory.setdefault(f"{name} {count}", round(server.megabytes(), 1))
        print(name, count, memory[f"{name} {count}"], "MB", flush=True)


def under_load(url: str, count: int, clients: int, seconds: float) -> dict[str, float]:
    """Requests per second, milliseconds, and failures of clients that ask without a pause."""
    options = Namespace(tasks=count, churn="")
    environment = Environment(user_classes=[load.Client], host=url, parsed_options=options, stop_timeout=60)
    runner = environment.create_local_runner()
    runner.start(clients, spawn_rate=clients)
    gevent.sleep(SETTLE)
    environment.stats.reset_all()
    gevent.sleep(seconds)
    entry = environment.stats.get("classify", "POST")
    row = {
        "requests": entry.num_requests,
        "per_second": round(entry.num_requests / seconds, 2),
        "mean_ms": round(entry.avg_response_time, 3),
        **{f"p{share}_ms": entry.get_response_time_percentile(share / 100) for share in (50, 95, 99)},
        "failures": environment.stats.total.num_failures,
        "sent_again": environment.stats.get("sent again", "POST").num_requests,
    }
    runner.quit()
    return row


def machine() -> dict[str, str]:
    """What it was measured on and with."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    cpu = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    versions = {one.__name__: one.__version__ for one in (torch, transformers, peft, ray)}
    return {"cpu": f"{os.cpu_count()} cores of {cpu}", "python": sys.version.split()[0], **versions}


def save(path: Path, results: Results) -> None:
    """Write the JSON file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(partial, path)
