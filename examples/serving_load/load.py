# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Put a running server under load, and compare every answer with the first one for the same image and adapter.

    locust -f examples/serving_load/load.py --headless --users 8 --run-time 30s --host http://127.0.0.1:8000

`--csv runs/load` keeps the numbers that Locust prints: requests per second, percentiles and failures. `--tasks N` asks
only the first N adapters. With `--churn FOLDER FOLDER` one more user adds the first adapter, replaces it by the second
and deletes that, over and over. The server has to allow both, and GATED_PROMPT_TOKEN holds its token. As a client
should, users repeat a request that the server was too busy for (counted as "asked to wait") or that failed because a
replica died ("sent again").
"""

import os
import random
import time
from pathlib import Path
from typing import Any

import requests
from locust import FastHttpUser, constant, events, task

IMAGES = [path.read_bytes() for path in sorted((Path(__file__).parents[1] / "demo" / "samples").iterdir())]
TOLERANCE = 1e-5  # of a score, in float32
EXPECTED: dict[tuple[str, str, int], dict[str, float]] = {}  # scores by host, adapter and image: the first answer
BROKEN = (0, 500, 502)  # no connection, or the replica died with the request in hand
TRIES, PAUSE = 60, 0.5  # of a request that failed. Seconds between them


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    """Options beside Locust's own."""
    parser.add_argument("--tasks", type=int, default=0, help="number of adapters to ask, 0 for all")
    parser.add_argument("--churn", nargs=2, default=[], help="folders of two adapters that come and go meanwhile")


class Client(FastHttpUser):
    """Asks one question after the other."""

    wait_time = constant(0)

    def on_start(self) -> None:
        options = self.environment.parsed_options
        if not hasattr(options, "names"):
            options.names = names_at(str(self.host))
        self.names = options.names[: options.tasks or None]

    @task
    def ask(self) -> None:
        """Send a random image to a random adapter."""
        name, place = random.choice(self.names), random.randrange(len(IMAGES))
        response = repeated(self.client, "POST", f"/v1/classify/{name}?top_k=1000", "classify", data=IMAGES[place])
        if response.status_code == 200:
            self.compare(name, place, response)

    def compare(self, name: str, place: int, response: Any) -> None:
        """Count an answer that is not the expected one as a failure."""
        scores = {one["name"]: one["score"] for one in response.json()["predictions"]}
        expected = EXPECTED.setdefault((self.host or "", name, place), scores)
        off = max(abs(expected.get(label, 2.0) - score) for label, score in scores.items())
        if expected.keys() != scores.keys() or off > TOLERANCE:
            report(self.environment, f"{name}, image {place}: scores differ by {off}")


class Churner(FastHttpUser):
    """Adds an adapter, replaces it by another, and deletes it, asking it after each change."""

    NAME = "comes-and-goes"
    fixed_count = 1
    wait_time = constant(0.1)

    @task
    def come_and_go(self) -> None:
        """One round of three changes; without --churn, nothing."""
        sources = self.environment.parsed_options.churn
        if not sources:
            time.sleep(1)
            return
        headers = {"Authorization": f"Bearer {os.environ.get('GATED_PROMPT_TOKEN', '')}"}
        url = f"/v1/adapters/{self.NAME}"
        for name, source in zip(("add", "replace"), sources, strict=True):
            put = repeated(self.client, "PUT", url, name, json={"source": source}, headers=headers)
            answer = repeated(self.client, "POST", f"/v1/classify/{self.NAME}", f"ask after {name}", data=IMAGES[0])
            if put.status_code == answer.status_code == 200 and put.json()["sha256"] != answer.json()["sha256"]:
                report(self.environment, f"after {name}, the answer was that of another version")
        repeated(self.client, "DELETE", url, "delete", right=(204, 404), headers=headers)
        gone = repeated(self.client, "POST", f"/v1/classify/{self.NAME}", "ask after delete", (404,), data=IMAGES[0])
        if gone.status_code == 200:
            report(self.environment, "a deleted adapter answered")


def names_at(url: str) -> list[str]:
    """Adapters that a server can answer with, without the one that comes and goes."""
    listed = requests.get(f"{url}/v1/adapters", timeout=600).json()
    return [one["name"] for one in listed if not one["error"] and one["name"] != Churner.NAME]


def repeated(client: Any, method: str, url: str, name: str, right: tuple[int, ...] = (200,), **options: Any) -> Any:
    """The answer of a request, repeated where the server says so or a replica died with it.

    A last status that is not `right` counts as a failure.
    """
    for times in range(TRIES):
        with client.request(method, url, name=name, catch_response=True, **options) as response:
            again = response.status_code == 503 or response.status_code in BROKEN
            if not again or times == TRIES - 1:
                if response.status_code in right:
                    response.success()
                else:
                    response.failure(f"{response.status_code}: {response.text}")
                break
            response.request_meta["name"] = "asked to wait" if response.status_code == 503 else "sent again"
            response.success()
        time.sleep(float((response.headers or {}).get("Retry-After", PAUSE)))
    return response


def report(environment: Any, fault: str) -> None:
    """Count an answer that is wrong as a failure."""
    environment.events.request.fire(
        request_type="POST", name="wrong answer", response_time=0, response_length=0, context={},
        exception=ValueError(fault),
    )  # fmt: skip
