"""Adapters from one pair of PEFT and transformers to another; `.ci/test-versions` runs this with each pair.

python tests/exchange_adapters.py write FOLDER      # the adapters of `adapter_fixtures.py` and their logits
python tests/exchange_adapters.py check FOLDER      # load them in every way; prints the largest difference
"""

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel

import gated_prompt
from helpers.adapter_fixtures import CASES, logits, main, tiny_base

TOLERANCE = 1e-6  # of logits of order 1, in float32


def by_transformers(base: torch.nn.Module, folder: Path) -> torch.nn.Module:
    base.load_adapter(folder)
    return base


LOADERS: list[Callable[..., torch.nn.Module]] = [gated_prompt.load, PeftModel.from_pretrained, by_transformers]


def check(folder: Path) -> float:
    """Largest difference to the stored logits, over all adapters and ways to load them."""
    plain, largest = logits(tiny_base()), 0.0
    for name in CASES:
        wanted = torch.tensor(json.loads((folder / name / "logits.json").read_text()))
        if torch.allclose(plain, wanted, atol=1e-3):
            raise SystemExit(f"{folder / name}: the logits are those of the base, so this would prove nothing")
        for load in LOADERS:
            largest = max(largest, (logits(load(tiny_base(), folder / name)) - wanted).abs().max().item())
    return largest


if __name__ == "__main__":
    command, place = sys.argv[1], Path(sys.argv[2])
    if command == "write":
        main(place)
    else:
        warnings.simplefilter("ignore")  # PEFT names fields of newer versions that it leaves out
        difference = check(place)
        print("equal" if difference == 0 else f"{difference:.0e}")
        sys.exit(difference > TOLERANCE)
