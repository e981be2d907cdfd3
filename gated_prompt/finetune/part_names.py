# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What folders of the parts of a data set are called."""

import re

TRAIN, VALIDATION, TEST = "train", "validation", "test"
WORDS = {
    TRAIN: "train|training",
    VALIDATION: "validation|validate|valid|val|dev|development",
    TEST: "test|testing|eval|evaluation|holdout",
}
# Also train2017, test_set, "Validation Data".
NAMES = {
    part: re.compile(rf"({words})[-_ .]*(set|data|dataset|images?|imgs|pictures|photos|split)?[-_ .]*\d*")
    for part, words in WORDS.items()
}


def part_of(name: str) -> str | None:
    """The part that a folder's name stands for."""
    return next((part for part, form in NAMES.items() if form.fullmatch(name.strip().lower())), None)
