# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""A server in processes of its own, started to be measured, and clients that ask it for a while."""

import os
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gevent
import psutil
import requests
from gevent.pool import Pool
from locust.env import Environment

from gated_prompt import GatedPromptError

from . import load
from .load import IMAGES
from .ports import free_port

SCRIPT = Path(__file__).parent / "measure_server.py"
AT_ONCE = 8  # adapters that are loaded together
SECONDS = 600  # to start, and to stop: a busy machine is slow


class Started:
    """The address of a server, and its processes."""

    def __init__(self, url: str, process: psutil.Process) -> None:
        self.url, self.process = url, process

    def replicas(self) -> list[psutil.Process]:
        """Processes with a backbone."""
        found = []
        for one in self.process.children(recursive=True):
            with suppress(psutil.Error):  # it has just ended
                if "ServeReplica" in " ".join(one.cmdline()):
                    found.append(one)
        return found

    def megabytes(self) -> float:
        """Resident memory of the first replica."""
        return float(self.replicas()[0].memory_info().rss) / 1e6

    def names(self) -> list[str]:
        """Adapters that are served."""
        return [one["name"] for one in requests.get(f"{self.url}/v1/adapters", timeout=SECONDS).json()]

    def load(self, count: int) -> None:
        """Let it load its first `count` adapters: each is loaded at its first request."""

        def ask(name: str) -> None:
            url = f"{self.url}/v1/classify/{name}"
            requests.post(url, data=IMAGES[0], timeout=SECONDS).raise_for_status()

        for _ in Pool(AT_ONCE).imap_unordered(ask, self.names()[:count]):
            pass


@contextmanager
def started(contender: str, log: Path, options: Mapping[str, object]) -> Iterator[Started]:
    """Serve with this contender of measure_server.py until the context is left.

    Raises:
        GatedPromptError: it ends before it serves, or takes too long.
    """
    port = free_port()
    command = [sys.executable, str(SCRIPT), "serve", contender]
    for name, value in {**options, "port": port}.items():
        command += [f"--{name}", str(value)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    try:
        deadline = time.monotonic() + SECONDS
        while "serving on" not in log.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                raise GatedPromptError(f"the server did not start. See {log}.")
            time.sleep(0.2)
        yield Started(f"http://127.0.0.1:{port}", psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait(SECONDS)


SETTLE = 1.0  # seconds before counting starts
Row = dict[str, float]


def users_of(url: str, *kinds: type[Any], tasks: int = 0, churn: Sequence[str] = ()) -> Environment:
    """Locust's environment for users of `load.py`. `tasks`, `churn`: the options of that script."""
    options = Namespace(tasks=tasks, churn=churn)
    return Environment(user_classes=[load.Client, *kinds], host=url, parsed_options=options, stop_timeout=60)


def under_load(url: str, tasks: int, clients: int, seconds: float) -> Row:
    """Requests per second, milliseconds, and failures of clients that ask without a pause.

    The clients ask the first `tasks` adapters.
    """
    environment = users_of(url, tasks=tasks)
    environment.parsed_options.names = load.names_at(
        url
    )  # once, and before: to list a thousand is work for the server
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
