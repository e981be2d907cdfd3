"""Killed at random moments, in the middle of writing too, a run of `gated-prompt train` ends with the same bytes."""

import os
from pathlib import Path

import pytest

from attacks.kills import attack


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_run_that_is_killed_ends_with_the_same_bytes(backbone: Path, tmp_path: Path) -> None:
    told, differ = attack(tmp_path, 4, backbone)
    assert differ == []
    assert sum(line.startswith("killed") for line in told) >= 2, told
