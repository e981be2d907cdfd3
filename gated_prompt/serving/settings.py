# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Settings of the server, and the secret that PUT and DELETE require.

The secret lies in a file of its owner, and its path is all that others are told: Ray writes what replicas are given as
environment variables into logs that everyone on the machine can read.
"""

import hmac
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import GatedPromptError
from ..shipped import BACKBONE_HELP, SHIPPED_BACKBONE

TOKEN = "GATED_PROMPT_TOKEN"  # in the environment, as everyone on the machine can read a command line
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def _help(text: str, default: Any) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class Settings:
    """Options of the command line, or `args` in serve_config.yaml.

    Raises:
        GatedPromptError: a value is out of range, or anyone could change the adapters.
    """

    backbone: str = _help(BACKBONE_HELP, str(SHIPPED_BACKBONE))
    engine: str = _help(
        "folder of `gated-prompt export --engine`, which onnxruntime computes: instead of --backbone and --adapters",
        "",
    )
    adapters: str = _help("folder with one subfolder per adapter or per output of `train` (required)", "")
    allow: list[str] = field(
        default_factory=list,
        metadata={
            "help": "sources that PUT accepts: folders, with everything below them, and Hub ids (default: none)"
        },
    )
    token_file: str | None = _help(
        f"file with the token that PUT and DELETE require, readable by its owner only (default: the token in {TOKEN})",
        None,
    )
    host: str = _help("address to listen on", "127.0.0.1")
    port: int = _help("port to listen on", 8000)
    address: str | None = _help(
        "address of a Ray cluster, or auto (default: the server runs on this machine only)", None
    )
    replicas: int = _help("number of replicas", 1)
    cpus: float = _help("cores per replica", 1.0)
    memory_mb: float = _help("megabytes that the adapters in a replica's memory may take", 256.0)
    prefetch: list[str] = field(
        default_factory=list,
        metadata={"help": "adapters to load at the start. Others are loaded at their first request"},
    )
    batch_size: int = _help("largest number of images computed together", 16)
    batch_wait_ms: float = _help("milliseconds that a batch waits for more images", 5.0)
    queue: int = _help("requests that a replica accepts at a time. It answers 503 to others", 128)
    upload_mb: float = _help("largest upload, in megabytes", 10.0)
    megapixels: float = _help("largest image, in megapixels", 12.0)
    image_side: int = _help("largest side of the images that an adapter may ask for, in pixels", 1024)
    upload_seconds: float = _help("seconds that an upload may take", 15.0)
    seconds: float = _help("seconds that an answer may take after the upload", 30.0)
    stop_seconds: float = _help("seconds that requests may take to finish after SIGTERM or Ctrl+C", 30.0)

    def __post_init__(self) -> None:
        positive = ("replicas", "cpus", "memory_mb", "batch_size", "queue", "upload_mb", "megapixels")
        for name in (*positive, "image_side", "upload_seconds", "seconds", "stop_seconds"):
            if not getattr(self, name) > 0:
                raise GatedPromptError(f"--{name} is {getattr(self, name)}. Expected more than 0.")
        if self.engine and (self.adapters or self.backbone != str(SHIPPED_BACKBONE)):
            raise GatedPromptError(
                f"--engine {self.engine} has its own backbone and adapters. Leave out --backbone and --adapters."
            )
        if self.batch_wait_ms < 0 or not 0 < self.port < 2**16:
            raise GatedPromptError(
                f"--batch_wait_ms is {self.batch_wait_ms} and --port is {self.port}. Expected a wait of at least 0, "
                "and a port from 1 to 65535."
            )
        if self.allow and self.host not in LOOPBACK and not (self.token_file or os.environ.get(TOKEN)):
            raise GatedPromptError(
                f"--host {self.host} with --allow lets anyone change the adapters. Put a secret into the environment "
                f"variable {TOKEN}, which clients then have to send."
            )


@contextmanager
def token_in_file(settings: Settings) -> Iterator[Settings]:
    """Settings that name a file with the token of the environment, which is not passed on to child processes.

    Raises:
        GatedPromptError: replicas on other machines could not read that file.
    """
    token = os.environ.get(TOKEN)
    if not token or settings.token_file is not None:
        yield settings
        return
    if settings.address is not None:
        raise GatedPromptError(
            f"{TOKEN} is set, but replicas on other machines cannot see it. Put the token into a file that all of "
            "them can read and give --token_file."
        )
    with tempfile.TemporaryDirectory(prefix="gated-prompt-") as folder:  # only its owner may enter it
        path = Path(folder, "token")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(token)
        del os.environ[TOKEN]
        try:
            yield replace(settings, token_file=str(path))
        finally:
            os.environ[TOKEN] = token


def read_token(path: str | None) -> bytes | None:
    """The token in this file, or, without one, that of the environment, as on a cluster. None if none is required.

    Raises:
        GatedPromptError: the file is missing or empty, or others may read it.
    """
    if path is None:
        return os.environ[TOKEN].encode() if os.environ.get(TOKEN) else None
    try:
        token = Path(path).read_bytes().strip()
        mode = stat.S_IMODE(os.stat(path).st_mode)
    except OSError as error:
        raise GatedPromptError(f"cannot read --token_file {path} ({error.strerror})") from error
    if os.name == "posix" and mode & 0o077:
        raise GatedPromptError(f"others can read --token_file {path}. Make it private: chmod 600 {path}")
    if not token:
        raise GatedPromptError(f"--token_file {path} is empty. Put the secret into it.")
    return token


def is_authorized(token: bytes | None, header: str) -> bool:
    """Whether this `Authorization` header carries the token. The name of the scheme is case-insensitive (RFC 9110)."""
    if token is None:
        return True
    scheme, _, sent = header.partition(" ")
    return hmac.compare_digest(sent.strip().encode("latin-1", "replace"), token) and scheme.lower() == "bearer"
