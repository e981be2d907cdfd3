# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Clients of `load.py` for a while, and how they were served."""

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import gevent
from locust.env import Environment

from . import load

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
