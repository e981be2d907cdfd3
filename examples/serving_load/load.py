# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Put a running server under load, and compare every answer with the first one for the same image and adapter.

    locust -f examples/serving_load/load.py --headless --users 8 --run-time 30s --host http://127.0.0.1:8000

`--csv runs/load` keeps the numbers that Locust prints: requests per second, percentiles and failures. `--tasks N` asks
only the first N adapters. With `--churn FOLDER` one more user adds that adapter and deletes it again, over and over;
the server has to allow the folder, and GATED_PROMPT_TOKEN holds its token. As a client should, users repeat a request
that the server was too busy for (counted as "asked to wait") or that failed because a replica died ("sent again").
"""

import os
import random
import time
from pathlib import Path
from typing import Any

from locust import FastHttpUser, constant, events, task

IMAGES = [path.read_bytes() for path in sorted((Path(__file__).parents[1] / "demo" / "samples").iterdir())]
TOLERANCE = 1e-5  # of a score, in float32
EXPECTED: dict[tuple[str, str, int], dict[str, float]] = {}  # scores by host, adapter and image: the first answer
BROKEN = (0, 500, 502)  # no connection, or the replica died with the request in hand
TRIES, PAUSE = 60, 0.5  # of a request that failed; seconds between them


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    """Options beside Locust's own."""
    parser.add_argument("--tasks", type=int, default=0, help="number of adapters to ask; 0: all")
    parser.add_argument("--churn", default="", help="folder of an adapter to add and delete meanwhile")


class Client(FastHttpUser):
    """Asks one question after the other."""

    wait_time = constant(0)

    def on_start(self) -> None:
        listed = [one["name"] for one in self.client.get("/v1/adapters", name="list").json() if not one["error"]]
        names = [name for name in listed if name != Churner.NAME]
        self.names = names[: self.environment.parsed_options.tasks or None]

    @task
    def ask(self) -> None:
        """Send a random image to a random adapter, again where the server says so or fails."""
        name, place = random.choice(self.names), random.randrange(len(IMAGES))
        for left in reversed(range(TRIES)):
            with self.client.post(
                f"/v1/classify/{name}?top_k=1000", data=IMAGES[place], name="classify", catch_response=True
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
        """Count an answer that is not the expected one as a failure."""
        scores = {one["name"]: one["score"] for one in response.json()["predictions"]}
        expected = EXPECTED.setdefault((self.host or "", name, place), scores)
        off = max(abs(expected.get(label, 2.0) - score) for label, score in scores.items())
        if expected.keys() != scores.keys() or off > TOLERANCE:
            self.environment.events.request.fire(
                request_type="POST", name="wrong answer", response_time=0, response_length=0, context={},
                exception=ValueError(f"{name}, image {place}: scores differ by {off}"),
            )  # fmt: skip


class Churner(FastHttpUser):
    """Adds an adapter, asks it, and deletes it."""

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
        self.client.post(f"/v1/classify/{self.NAME}", data=IMAGES[0], name="classify the new one")
        self.client.delete(url, headers=headers, name="delete")
