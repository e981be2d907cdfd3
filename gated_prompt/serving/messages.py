# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Messages for clients, without what only the server's owner may know."""

import re

ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
PLACE = re.compile(r"(?<![\w.:/])/(?!v1/)(?:[^\s/'\"`:,;()<>]+/)*([^\s/'\"`:,;()<>]+)")  # /a/b/c, but no route or URL


def public(message: str, *folders: str) -> str:
    """The message without addresses of objects and without the folders in which files lie: their names stay."""
    for folder in sorted(filter(None, folders), key=len, reverse=True):
        message = message.replace(f"{folder}/", "")
    return PLACE.sub(r"\1", ADDRESS.sub("", message))
