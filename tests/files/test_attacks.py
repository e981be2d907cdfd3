"""Every adapter of `attacks/` is refused with the right error, before the base changes, at little cost."""

import time
from pathlib import Path

import pytest
import torch
from peft import PeftModel

import gated_prompt
from attacks import ATTACKS
from helpers.models import images, vit

PEAK = Path("/proc/self/clear_refs")  # Linux: forget the peak so far
MOST = 64  # MiB that a refusal may take


def peak() -> float:
    """Peak memory of this process in MiB; 0 if the system does not report it."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


@pytest.fixture(scope="module")
def base() -> torch.nn.Module:
    return vit()


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_is_refused(adapter: Path, saved: Path, base: torch.nn.Module, name: str, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    attack = ATTACKS[name]
    attack.change(adapter)
    attributes, keys = set(vars(base)), list(base.state_dict())
    with torch.no_grad():
        before = base(images()).logits
        for loader in [gated_prompt.load, PeftModel.from_pretrained][: 1 + attack.peft_too]:
            if PEAK.exists():
                PEAK.write_text("5")
            start, held = time.perf_counter(), peak()
            with pytest.raises(attack.error, match=attack.words) as caught:
                loader(base, adapter)
            assert time.perf_counter() - start < 10 and peak() - held < MOST
            assert type(caught.value) is attack.error and str(adapter) in str(caught.value)
            assert len(str(caught.value)) < 3000
            assert set(vars(base)) == attributes and list(base.state_dict()) == keys
            assert torch.equal(base(images()).logits, before)
        model = gated_prompt.load(base, saved).eval()  # and it can still take a good one
        assert not torch.allclose(model(images()).logits, before)
        assert torch.equal(model.unload()(images()).logits, before)
