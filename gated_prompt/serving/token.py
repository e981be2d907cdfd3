# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The secret that PUT and DELETE require: it lies in a file of its owner, and its path is all that others are told.

Ray writes what replicas are given as environment variables into logs that everyone on the machine can read.
"""

import hmac
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ..errors import GatedPromptError
from .settings import TOKEN, Settings


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
            f"{TOKEN} is set, but replicas on other machines cannot see it; put the token into a file that all of "
            "them can read and give --token_file"
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
    """The token in this file, or, without one, that of the environment, as on a cluster. None: none is required.

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
        raise GatedPromptError(f"others can read --token_file {path}; run: chmod 600 {path}")
    if not token:
        raise GatedPromptError(f"--token_file {path} is empty; put the secret into it")
    return token


def is_authorized(token: bytes | None, header: str) -> bool:
    """Whether this `Authorization` header carries the token. The name of the scheme is case-insensitive (RFC 9110)."""
    if token is None:
        return True
    scheme, _, sent = header.partition(" ")
    return hmac.compare_digest(sent.strip().encode("latin-1", "replace"), token) and scheme.lower() == "bearer"
