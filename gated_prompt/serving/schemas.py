# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""JSON bodies of requests and answers, and what clients may read in a message."""

import re

from pydantic import BaseModel, Field


class Prediction(BaseModel):
    """A class or label and its probability, or the name and value of a number."""

    name: str
    score: float


class Answer(BaseModel):
    """Predictions of an adapter for one image, the best first."""

    adapter: str
    sha256: str | None = Field(description="SHA-256 of the adapter's weights")
    problem: str = Field(description="classes, labels or numbers")
    predictions: list[Prediction]


class Features(BaseModel):
    """Frozen features of one image: a row for each block, after the final norm. "both" is CLS, then the mean."""

    blocks: list[int]
    reads: str = Field(description="cls, mean (of the patches) or both")
    features: list[list[float]]


class AdapterInfo(BaseModel):
    """A served adapter; `error` says why it cannot be used."""

    name: str
    classes: list[str] = []
    problem: str | None = None
    sha256: str | None = None
    card: str | None = Field(default=None, description="the model card, Markdown")
    error: str | None = None


class Source(BaseModel):
    """The source of an adapter."""

    source: str = Field(description="folder or Hub id that --allow names", max_length=1000)
    revision: str | None = Field(default=None, description="branch, tag or commit on the Hub", max_length=200)


ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
PLACE = re.compile(r"(?<![\w.:/])/(?!v1/)(?:[^\s/'\"`:,;()<>]+/)*([^\s/'\"`:,;()<>]+)")  # /a/b/c, but no route or URL


def public(message: str, *folders: str) -> str:
    """The message without addresses of objects and without the folders in which files lie: their names stay."""
    for folder in sorted(filter(None, folders), key=len, reverse=True):
        message = message.replace(f"{folder}/", "")
    return PLACE.sub(r"\1", ADDRESS.sub("", message))
