"""Mistakes on the command lines of train_images.py and predict.py: one line that says what to do, not a traceback."""

from pathlib import Path

import pytest

import predict
from gated_prompt import GatedPromptError
from own_images.arguments import parse


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--train_dir", "x", "--bakbone", "y"], "unknown option '--bakbone'; did you mean --backbone"),
        (["--train_dir", "x", "--zzz=1"], "unknown option '--zzz=1'; --help lists all options"),
    ],
)
def test_a_misspelt_option_of_train_images(argv: list[str], message: str) -> None:
    with pytest.raises(GatedPromptError, match=message):
        parse(argv)


def test_a_misspelt_option_of_predict() -> None:
    with pytest.raises(GatedPromptError, match="did you mean --adapters"):
        predict.main(["--images", "x", "--adaptors", "y"])


def test_adapters_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(GatedPromptError, match=r"there is no folder .*missing"):
        predict.main(["--images", "x", "--adapters", str(tmp_path / "missing")])
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(GatedPromptError, match=r"has not finished; repeat its train_images\.py command"):
        predict.main(["--images", "x", "--adapters", str(tmp_path)])
