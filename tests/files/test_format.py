"""Adapters that an earlier version wrote still load and compute the same (`docs/contributing/format.md`)."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

import gated_prompt
from gated_prompt import GatedPromptConfig
from helpers.adapter_fixtures import CASES, FOLDER, logits, make, tiny_base

DOCS = Path(__file__).parents[2] / "docs" / "contributing" / "format.md"


def test_every_fixture_has_a_case() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(CASES)


@pytest.mark.parametrize("load", [gated_prompt.load, PeftModel.from_pretrained], ids=["load", "peft"])
@pytest.mark.parametrize("name", CASES)
def test_stored_adapters_compute_the_stored_logits(name: str, load) -> None:
    wanted = torch.tensor(json.loads((FOLDER / name / "logits.json").read_text()))
    assert not torch.allclose(logits(tiny_base()), wanted, atol=1e-3)  # the adapter matters
    torch.testing.assert_close(logits(load(tiny_base(), FOLDER / name)), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_todays_files_are_those_stored(tmp_path, name: str) -> None:
    """Keys, shapes, types and this method's settings; versions of PEFT may add fields of their own."""
    gated_prompt.save(make(CASES[name]), tmp_path)
    now, then = tmp_path / "adapter_model.safetensors", FOLDER / name / "adapter_model.safetensors"
    assert {k: (v.shape, v.dtype) for k, v in load_file(now).items()} == {
        k: (v.shape, v.dtype) for k, v in load_file(then).items()
    }
    now, then = (json.loads((folder / "adapter_config.json").read_text()) for folder in (tmp_path, FOLDER / name))
    own = set(GatedPromptConfig.__annotations__) - {"weights_sha256"}
    default = GatedPromptConfig().to_dict()  # a field that came later was at its default before
    assert {key: now[key] for key in own} == {key: then.get(key, default[key]) for key in own}
    assert re.fullmatch("[0-9a-f]{64}", then["weights_sha256"])


def test_the_description_names_every_field() -> None:
    text = DOCS.read_text()
    own = set(GatedPromptConfig.__annotations__)
    assert own <= {f.name for f in fields(GatedPromptConfig)}
    assert [name for name in sorted(own) if f"`{name}`" not in text] == []
