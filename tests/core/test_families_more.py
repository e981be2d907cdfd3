# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The families of `families_more.py`: an independent loop, a file, a fresh process, unloading; all to the numbers."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from torch import nn

import gated_prompt
from gated_prompt import GatedPromptConfig, find_head_names, find_vision_transformer
from helpers.by_hand import prompts_by_hand
from helpers.families_more import MORE, More

transformers.logging.set_verbosity_error()
HERE = [case for case in MORE if case.here]
P = 3
QUERIES = ("q_proj", "query", "qkv")


def cases(chosen: list[More]) -> Any:
    return pytest.mark.parametrize("case", chosen, ids=[case.id for case in chosen])


def prompted(case: More) -> PeftModel:
    """The case with every trained tensor far from its initial value."""
    config = GatedPromptConfig(num_virtual_tokens=P, prompt_dropout=0.0, gate_init=0.0)
    model = get_peft_model(case.build(), config).eval()
    generator = torch.Generator().manual_seed(4)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            step = torch.randn(parameter.shape, generator=generator)
            parameter.data += step.abs() if "temperatures" in name else step if "gated_prompt_" in name else 0.1 * step
    return model


def query_of(block: nn.Module) -> nn.Module:
    return next(m for name, m in block.named_modules() if name.rpartition(".")[2] in QUERIES)


@torch.no_grad()
@cases(HERE)
def test_the_parts(case: More) -> None:
    base = case.build()
    vit = find_vision_transformer(base)
    assert (len(vit.blocks), vit.num_prefix_tokens, vit.hidden_size) == (4, case.prefix, 32)
    assert tuple(find_head_names(base)) == case.head


@torch.no_grad()
@cases(HERE)
def test_prompts_are_what_a_loop_by_hand_gives(case: More) -> None:
    model, base = prompted(case), case.build()
    bank = dict(model.named_parameters())
    tokens, gates, taus = (
        next(p for n, p in bank.items() if f"gated_prompt_{part}" in n)
        for part in ("tokens", "gate_logits", "temperatures")
    )
    heads = {n.replace(".modules_to_save.default", ""): p for n, p in bank.items() if ".modules_to_save." in n}
    base.load_state_dict({n.removeprefix("base_model.model."): p for n, p in heads.items()}, strict=False)
    plain = case.run(base)
    blocks = find_vision_transformer(base).blocks
    with prompts_by_hand(blocks, [query_of] * 4, tokens[0], gates.sigmoid(), taus):
        wanted = case.run(base)
    found = case.run(model)
    error = (found - wanted).abs().max()
    assert error <= 1e-5 * wanted.abs().max()
    assert error <= 0.02 * (wanted - plain).abs().max(), "the prompts do nothing that could be compared"


@torch.no_grad()
@cases(HERE)
def test_a_file_gives_the_same_model_and_unload_the_base(case: More, tmp_path: Path) -> None:
    base = case.build().requires_grad_(False)  # frozen: attention pools take another kernel for weights that are not
    wanted, state = case.run(base), {name: value.clone() for name, value in base.state_dict().items()}
    model = prompted(case)
    assert not torch.equal(case.run(model), wanted)
    gated_prompt.save(model, tmp_path)
    loaded = gated_prompt.load(case.build(), tmp_path).eval()
    assert torch.equal(case.run(loaded), case.run(model))
    restored = model.unload().requires_grad_(False)
    assert torch.equal(case.run(restored), wanted)
    assert restored.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in restored.state_dict().items())


@torch.no_grad()
def test_a_fresh_process_gives_the_same_outputs(tmp_path: Path) -> None:
    """One process for all cases: starting one takes as long as the rest of this file."""
    for case in HERE:
        model = prompted(case)
        gated_prompt.save(model, tmp_path / case.name)
        torch.save(case.run(model), tmp_path / f"{case.name}.pt")
    places = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": places},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == [case.name for case in HERE], done.stderr[-2000:]


def _main(folder: Path) -> None:
    with torch.no_grad():
        for case in HERE:
            loaded = gated_prompt.load(case.build(), folder / case.name).eval()
            if torch.equal(case.run(loaded), torch.load(folder / f"{case.name}.pt")):
                print(case.name)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
