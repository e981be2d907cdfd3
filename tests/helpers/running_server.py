"""A server of `gated-prompt serve` in processes of its own, on loopback, for tests of what clients see."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import requests

from serving_load.ports import free_port

ROOT = Path(__file__).parents[2]
SECONDS = 240  # to start: a busy machine is slow


class Running:
    """A started server: where it answers, its folder with `adapters`, `allowed` and `log`, and its processes."""

    def __init__(self, url: str, root: Path, process: psutil.Process) -> None:
        self.url, self.root, self.process = url, root, process

    def ask(self, name: str, data: bytes, **options: object) -> requests.Response:
        return requests.post(f"{self.url}/v1/classify/{name}", data=data, timeout=60, **options)

    def replicas(self) -> list[psutil.Process]:
        return [one for one in self.process.children(recursive=True) if "ServeReplica" in " ".join(one.cmdline())]


@contextmanager
def running_server(root: Path, options: Mapping[str, object], allow: list[str], **env: str) -> Iterator[Running]:
    """Serve `root / "adapters"` until the context is left, and check that every process of it has ended then."""
    port, log = free_port(), root / "log"
    options = {"port": port, **({} if "engine" in options else {"adapters": root / "adapters"}), **options}
    command = [sys.executable, "-m", "gated_prompt", "serve", *(["--allow", *allow] if allow else [])]
    command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    with open(log, "w") as file:
        started = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONPATH": str(ROOT)} | env
        )
    process, family = psutil.Process(started.pid), []
    try:
        deadline = time.monotonic() + SECONDS
        while "serving on" not in log.read_text():
            assert started.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        family = process.children(recursive=True)
        yield Running(f"http://127.0.0.1:{port}", root, process)
    finally:
        if started.poll() is None:
            family += process.children(recursive=True)
            started.terminate()
        assert started.wait(60) == 0  # it took its processes with it
        _, left = psutil.wait_procs(family, timeout=15)
        alive = [one for one in left if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
        names = [(one.name(), one.status(), one.ppid()) for one in alive]
        for one in alive:
            one.kill()
        assert names == []
