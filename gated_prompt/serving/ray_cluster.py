# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Joining a Ray cluster, or starting Ray and its replicas so that only this machine reaches them."""

import contextlib
import importlib
import os
from typing import Any
from unittest.mock import patch

import psutil

from ..errors import GatedPromptError

LOOPBACK = "127.0.0.1"


def connect(ray: Any, address: str | None) -> None:
    """Join the cluster at `address` ('auto': the one of this machine), or start Ray on this machine alone.

    Raises:
        GatedPromptError: there is no cluster at that address, or Ray cannot be kept to this machine.
    """
    if address is None:
        _start_on_loopback(ray)
        return
    try:
        ray.init(address, log_to_driver=False, logging_level="warning")
    except ConnectionError as error:
        raise GatedPromptError(
            f"no Ray cluster at --address {address!r} ({error}). Start one with `ray start`."
        ) from error


def _start_on_loopback(ray: Any) -> None:
    """Start Ray where no other machine can reach it: whoever can may run code.

    Ray replaces 127.0.0.1 by the address that other machines see, and then listens on all of them. With this setting,
    its own for macOS and Windows, it does neither. It is read when ray is imported, here and in what Ray starts.
    """
    constants: Any = importlib.import_module("ray._private.ray_constants")
    with (
        patch.dict(os.environ, {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}),
        patch.object(constants, "ENABLE_RAY_CLUSTER", False),
    ):
        ray.init("local", include_dashboard=False, log_to_driver=False, logging_level="warning")
    addresses = sorted({str(node["NodeManagerAddress"]) for node in ray.nodes()})
    if addresses != [LOOPBACK]:
        ray.shutdown()
        raise GatedPromptError(
            f"Ray {ray.__version__} listens on {', '.join(addresses)} and cannot be kept to this machine. Use "
            "--scheduler serial, or --address with a cluster that you have secured."
        )


def descendants() -> set[psutil.Process]:
    """Children of this process, their children, and so on."""
    return set(psutil.Process().children(recursive=True))


def end(processes: set[psutil.Process]) -> None:
    """Wait for these processes, and kill those that remain: Ray's agents may outlive it for a while."""
    _, left = psutil.wait_procs(list(processes), timeout=3)
    for one in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(left, timeout=3)


def keep_to_loopback() -> None:
    """Make the replica in this process listen on 127.0.0.1 only. Call it before Serve opens its port.

    Besides HTTP, each replica of Ray 2.60 opens a port on all addresses for calls between deployments, which carry
    pickles. Ray has no setting for this address.
    """
    replica: Any = importlib.import_module("ray.serve._private.replica")
    add_port = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, _: add_port(server, "127.0.0.1:0")
