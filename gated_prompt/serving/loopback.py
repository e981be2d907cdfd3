# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Keep the ports of a replica out of reach of other machines."""

import importlib
from typing import Any


def keep_to_loopback() -> None:
    """Make the replica in this process listen on 127.0.0.1 only. Call it before Serve opens its port.

    Besides HTTP, each replica of Ray 2.60 opens a port on all addresses for calls between deployments, which carry
    pickles. Ray has no setting for this address.
    """
    replica: Any = importlib.import_module("ray.serve._private.replica")
    add_port = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, _: add_port(server, "127.0.0.1:0")
