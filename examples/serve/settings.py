# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What a server is started with."""

import os
from dataclasses import dataclass, field
from typing import Any

from gated_prompt import GatedPromptError
from recipe.methods import SHIPPED_BACKBONE

TOKEN = "GATED_PROMPT_TOKEN"  # in the environment: a command line can be read by everyone on the machine
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def _help(text: str, default: Any) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class Settings:
    """Options of the command line, or `args` in serve_config.yaml.

    Raises:
        GatedPromptError: a value makes no sense, or strangers could change what is served.
    """

    backbone: str = _help("Hub id or folder of the backbone", str(SHIPPED_BACKBONE))
    adapters: str = _help("folder with a subfolder for each adapter that is served", "examples/demo/adapters")
    allow: list[str] = field(
        default_factory=list,
        metadata={
            "help": "where PUT may take adapters from: folders, with all below them, and Hub ids; empty: nowhere"
        },
    )
    host: str = _help("address to listen on", "127.0.0.1")
    port: int = _help("port to listen on", 8000)
    address: str | None = _help("Ray cluster to run on, such as auto; None: this machine alone", None)
    replicas: int = _help("copies of the server", 1)
    cpus: float = _help("cores of a replica", 1.0)
    memory_mb: float = _help("megabytes that the adapters in the memory of a replica may take", 256.0)
    batch_size: int = _help("pictures that are computed together at most", 16)
    batch_wait_ms: float = _help("how long a batch waits for more pictures", 5.0)
    queue: int = _help("requests in the hands of a replica; others are answered 503", 128)
    upload_mb: float = _help("largest upload", 10.0)
    megapixels: float = _help("largest picture", 25.0)
    upload_seconds: float = _help("time for an upload", 15.0)
    seconds: float = _help("time for an answer, once the upload is there", 30.0)

    def __post_init__(self) -> None:
        positive = ("replicas", "cpus", "memory_mb", "batch_size", "queue", "upload_mb", "megapixels")
        for name in (*positive, "upload_seconds", "seconds"):
            if not getattr(self, name) > 0:
                raise GatedPromptError(f"--{name} is {getattr(self, name)}; it has to be more than 0")
        if self.batch_wait_ms < 0 or not 0 < self.port < 2**16:
            raise GatedPromptError(f"--batch_wait_ms {self.batch_wait_ms} or --port {self.port} cannot be")
        if self.allow and self.host not in LOOPBACK and not os.environ.get(TOKEN):
            raise GatedPromptError(
                f"--host {self.host} with --allow lets others change what is served; put a secret into the "
                f"environment variable {TOKEN}, which they then have to send"
            )
