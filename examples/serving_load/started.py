# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""A server in processes of its own, started to be measured."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import requests

from gated_prompt import GatedPromptError

from .load import IMAGES
from .ports import free_port

SCRIPT = Path(__file__).parent / "measure_server.py"
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
        for name in self.names()[:count]:
            url = f"{self.url}/v1/classify/{name}"
            requests.post(url, data=IMAGES[0], timeout=SECONDS).raise_for_status()


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
                raise GatedPromptError(f"the server did not start; {log} says why")
            time.sleep(0.2)
        yield Started(f"http://127.0.0.1:{port}", psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait(SECONDS)
