# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What the server takes and answers, as JSON."""

from pydantic import BaseModel, Field


class Prediction(BaseModel):
    """A class and its share, a label and its probability, or a number."""

    name: str
    score: float


class Answer(BaseModel):
    """What an adapter says of a picture, the best first."""

    adapter: str
    sha256: str | None = Field(description="of the adapter's weights")
    problem: str = Field(description="classes, labels or numbers")
    predictions: list[Prediction]


class AdapterInfo(BaseModel):
    """An adapter that is served; `error`: why it cannot be used."""

    name: str
    classes: list[str] = []
    problem: str | None = None
    sha256: str | None = None
    card: str | None = Field(default=None, description="the model card, Markdown")
    error: str | None = None


class Source(BaseModel):
    """Where an adapter comes from."""

    source: str = Field(description="folder or Hub id that the server was started to allow", max_length=1000)
    revision: str | None = Field(default=None, description="branch, tag or commit on the Hub", max_length=200)
