# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Serve every adapter of a folder from one frozen backbone, on http://127.0.0.1:8000. Stop with Ctrl+C.

    gated-prompt serve --adapters runs/served
    gated-prompt serve --backbone facebook/dinov2-small --adapters runs/served --allow runs
    gated-prompt serve --engine engine

Several machines: Serve's own config, or --address of a Ray cluster. See docs/serving.md.
"""

import dataclasses
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..command_line import CommandLine
from ..errors import GatedPromptError
from ..serving.settings import Settings, read_token, token_in_file

APPLICATION = "gated_prompt"
STOP_STEP = 0.2  # seconds between checks whether a stopping replica has answered everything


def parser() -> CommandLine:
    """The options. Nothing of the extra [serve] is imported for them."""
    return CommandLine([Settings], __doc__)


Load = Callable[[Settings], tuple[Any, Any]]


def main(argv: list[str] | None = None, load: Load | None = None) -> None:
    """Run with these arguments, or with those of the command line. `load`: as `serving.replica.Replica` takes it."""
    try:
        (settings,) = parser().parse(argv)
        run(settings, load)
    except GatedPromptError as error:
        sys.exit(f"error: {error}")


def run(settings: Settings, load: Load | None) -> None:
    """Serve until SIGINT or SIGTERM arrives.

    Raises:
        GatedPromptError: Ray Serve is not installed, or backbone, adapters or port cannot be used.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        from ray import serve

        from ..serving.http import Server
    except ImportError as error:
        raise GatedPromptError(f"the server needs Ray Serve ({error}): pip install 'gated-prompt[serve]'") from error
    check(settings)
    if settings.engine:
        from ..engine.pool import load_engine

        load = load_engine
    with token_in_file(absolute(settings)) as found:
        serve_until_stopped(ray, serve, found, Server, load)


def serve_until_stopped(ray: Any, serve: Any, settings: Settings, server: Any, load: Load | None) -> None:
    """Start Ray and the replicas, and after SIGINT or SIGTERM let requests in progress finish."""
    from ..serving.ray_cluster import connect, descendants, end

    stop = threading.Event()
    connect(ray, settings.address)
    for number in (signal.SIGINT, signal.SIGTERM):  # set after Ray's own handler, which aborts 3 s after a signal
        signal.signal(number, lambda *_: stop.set())
    started = descendants()  # now, since the children of a process that has ended cannot be found
    try:
        serve.start(
            proxy_location="HeadOnly" if settings.address is None else "EveryNode",
            http_options={"host": settings.host, "port": settings.port},
        )
        server = server.options(
            num_replicas=settings.replicas,
            max_ongoing_requests=2 * settings.queue,  # so that the replica itself answers 503, with Retry-After
            graceful_shutdown_timeout_s=settings.stop_seconds,
            graceful_shutdown_wait_loop_s=STOP_STEP,
            ray_actor_options={"num_cpus": settings.cpus, "runtime_env": {"env_vars": environment()}},
        )
        serve.run(server.bind(dataclasses.asdict(settings), *([load] if load else [])), name=APPLICATION)
        print(f"serving on http://{settings.host}:{settings.port}", flush=True)
        stop.wait()
        serve.delete(APPLICATION)  # lets replicas finish. `shutdown` alone would end the proxy at once
    finally:
        started |= descendants()
        serve.shutdown()
        ray.shutdown()
        end(started)


def absolute(settings: Settings) -> Settings:
    """The same settings with absolute folders, for replicas in other working directories. Hub ids stay."""

    def found(place: str) -> str:
        return os.path.abspath(place) if os.path.isdir(place) else place

    return dataclasses.replace(
        settings,
        backbone=found(settings.backbone),
        adapters=os.path.abspath(settings.adapters) if settings.adapters else "",
        engine=os.path.abspath(settings.engine) if settings.engine else "",
        allow=[found(place) for place in settings.allow],
    )


def check(settings: Settings) -> None:
    """Refuse here what would fail in a replica, where the message is hard to find.

    Raises:
        GatedPromptError: there is no such backbone, folder or engine, or the port is taken.
    """
    from ..serving.store import Store
    from ..sharing.backbone import check_backbone

    store: Any
    if settings.engine:
        from ..engine.task_folder import TaskFolder

        if find_spec("onnxruntime") is None:
            raise GatedPromptError("an engine needs onnxruntime: pip install 'gated-prompt[onnx]'")
        store = TaskFolder(settings.engine)
    else:
        check_backbone(settings.backbone)
        store = Store(settings.adapters)
    for name, fault in store.skipped().items():
        print(f"not served: {name}: {fault}", flush=True)
    for name in settings.prefetch:
        store.find(name)
    read_token(settings.token_file)
    if settings.address is None:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        try:
            socket.create_server((settings.host, settings.port), family=family).close()
        except OSError as error:
            raise GatedPromptError(
                f"cannot listen on --host {settings.host} --port {settings.port} ({error.strerror}). Give another "
                "port."
            ) from error


def environment() -> dict[str, str]:
    """Environment variables for the replicas. Ray logs them, so no secret may be among them."""
    kept = {name: os.environ[name] for name in ("HF_HUB_OFFLINE", "PYTHONPATH") if name in os.environ}
    home = Path(__file__).parents[2]
    if home.name not in ("site-packages", "dist-packages"):  # a checkout, which replicas would not find
        kept["PYTHONPATH"] = os.pathsep.join(filter(None, [str(home), kept.get("PYTHONPATH")]))
    return kept
