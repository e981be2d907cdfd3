# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""`prompt_rank` is deprecated: one warning, and files with it are still read."""

import warnings
from pathlib import Path

import pytest
from peft import get_peft_model

import gated_prompt
from gated_prompt import GatedPromptConfig
from helpers.models import vit


def test_a_new_config_warns_once_at_the_callers_line() -> None:
    with pytest.warns(FutureWarning, match="prompt_rank is deprecated") as told:
        get_peft_model(vit(), GatedPromptConfig(prompt_rank=2))
    ours = [Path(warning.filename).name for warning in told if "prompt_rank" in str(warning.message)]
    assert ours == [Path(__file__).name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GatedPromptConfig()


def test_a_file_with_it_is_read(tmp_path: Path) -> None:
    with pytest.warns(FutureWarning):
        config = GatedPromptConfig(prompt_rank=2)
    gated_prompt.save(get_peft_model(vit(), config), tmp_path)
    assert gated_prompt.load(vit(), tmp_path).peft_config["default"].prompt_rank == 2
