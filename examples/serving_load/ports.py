# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""A port for a server that starts in a moment."""

import random
import socket

RANGE = range(20_000, 32_000)  # above Ray's worker ports and below those that the system gives to connections


def free_port() -> int:
    """A port on 127.0.0.1 that nothing listens on, and that neither Ray nor the system assigns meanwhile."""
    while True:
        port = random.choice(RANGE)
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)):  # refused
                return port
