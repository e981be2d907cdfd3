# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Put a running server under load, and compare every answer with the first one for the same picture and adapter.

    locust -f examples/serve/load.py --headless --users 8 --run-time 30s --host http://127.0.0.1:8000 --csv runs/load
    locust -f examples/serve/load.py --headless --users 8 --run-time 30s --host http://127.0.0.1:8000 --tasks 1

`--tasks N` asks the first N adapters only. `--churn FOLDER` lets one more user put that adapter up and take it down
all the time; the server has to allow the folder, and GATED_PROMPT_TOKEN holds its token. What the server is too busy
for, and what breaks because a replica dies, is sent again, as a client should, and counted as "asked to wait" and "sent
again". Locust prints requests per second, percentiles and failures.
"""

import os
import random
import time
from pathlib import Path
from typing import Any

from locust import FastHttpUser, constant, events, task

PICTURES = [path.read_bytes() for path in sorted((Path(__file__).parents[1] / "demo" / "samples").iterdir())]
TOLERANCE = 1e-5  # of a score, in float32
FIRST: dict[tuple[str, str, int], dict[str, float]] = {}  # what was said of a picture when it was asked about first
BROKEN = (0, 500, 502)  # no connection, or the replica died with the request in its hands
TRIES, PAUSE = 60, 0.5  # of a request that broke; seconds between them


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    """Options beside locust's own."""
    parser.add_argument("--tasks", type=int, default=0, help="adapters that are asked; 0: all")
    parser.add_argument("--churn", default="", help="folder of an adapter that comes and goes meanwhile")


class Client(FastHttpUser):
    """Asks one question after the other."""

    wait_time = constant(0)

    def on_start(self) -> None:
        listed = [one["name"] for one in self.client.get("/v1/adapters", name="list").json() if not one["error"]]
        names = [name for name in listed if name != Churner.NAME]
        self.names = names[: self.environment.parsed_options.tasks or None]

    @task
    def ask(self) -> None:
        """One picture, one adapter, both by chance; sent again where the server says so, or breaks."""
        name, place = random.choice(self.names), random.randrange(len(PICTURES))
        for left in reversed(range(TRIES)):
            with self.client.post(
                f"/v1/classify/{name}?top_k=1000", data=PICTURES[place], name="classify", catch_response=True
            ) as response:
                again = response.status_code == 503 or response.status_code in BROKEN
                if not again or not left:
                    break
                response.request_meta["name"] = "asked to wait" if response.status_code == 503 else "sent again"
                response.success()
            time.sleep(float((response.headers or {}).get("Retry-After", PAUSE)))
        if response.status_code == 200:
            self.compare(name, place, response)

    def compare(self, name: str, place: int, response: Any) -> None:
        """A failure, where the answer is not the first one."""
        said = {one["name"]: one["score"] for one in response.json()["predictions"]}
        first = FIRST.setdefault((self.host or "", name, place), said)
        off = max(abs(first.get(name, 2.0) - score) for name, score in said.items())
        if first.keys() != said.keys() or off > TOLERANCE:
            self.environment.events.request.fire(
                request_type="POST", name="wrong answer", response_time=0, response_length=0, context={},
                exception=ValueError(f"{name}, picture {place}: scores differ by {off}"),
            )  # fmt: skip


class Churner(FastHttpUser):
    """Puts an adapter up, asks it, and takes it down."""

    NAME = "comes-and-goes"
    fixed_count = 1
    wait_time = constant(0.2)

    @task
    def come_and_go(self) -> None:
        """One round; without --churn, nothing."""
        source = self.environment.parsed_options.churn
        if not source:
            time.sleep(1)
            return
        headers = {"Authorization": f"Bearer {os.environ.get('GATED_PROMPT_TOKEN', '')}"}
        url = f"/v1/adapters/{self.NAME}"
        self.client.put(url, json={"source": source}, headers=headers, name="put")
        self.client.post(f"/v1/classify/{self.NAME}", data=PICTURES[0], name="classify the new one")
        self.client.delete(url, headers=headers, name="delete")
