"""Where tests find real data: a folder named by the environment, never a path in the code."""

import os
from pathlib import Path

import pytest

VARIABLE = "GATED_PROMPT_TEST_DATA"


def real_data(*parts: str) -> Path:
    """The path below the test data folder; skips the test where the variable is not set or the data not there."""
    root = os.environ.get(VARIABLE)
    if not root:
        pytest.skip(f"{VARIABLE} is not set: it names the folder with the real test data")
    path = Path(root, *parts)
    if not path.exists():
        pytest.skip(f"{VARIABLE} has no {'/'.join(parts)}")
    return path
