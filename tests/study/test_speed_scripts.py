"""The speed scripts on a tiny model: their contenders, their ratios, their files. No timing is asserted."""

import json
from pathlib import Path

import pytest
import torch

from gated_prompt import find_vision_transformer
from helpers.models import bank_of
from speed.clock import Run, Setting, peak_memory
from speed.compare import main
from speed.contenders import CONTENDERS, Research, deep, extra_tokens, logits_of, plain, prompted
from speed.tables import ratio

PIXELS = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", CONTENDERS)
def test_contenders_train_what_they_say(name: str) -> None:
    run = Run(name, 4, Setting("tiny", batch=2))
    before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    assert run.train_step() > 0
    changed = {n for n, p in run.model.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert changed <= {n for n, p in run.model.named_parameters() if p.requires_grad}
    assert logits_of(run.model(PIXELS)).shape == (2, 100)
    assert run.forward() > 0


@pytest.mark.parametrize("is_deep", [False, True], ids=["gated", "deep"])
@torch.no_grad()
def test_the_restatement_computes_the_method(is_deep: bool) -> None:
    ours = (deep if is_deep else prompted)("tiny", 4).eval()
    base, bank = ours.get_base_model(), bank_of(ours)
    theirs = Research("tiny", 4, deep=is_deep).eval()
    theirs.cls.copy_(base.vit.embeddings.cls_token)
    theirs.positions.copy_(base.vit.embeddings.position_embeddings)
    theirs.patches.load_state_dict(base.vit.embeddings.patch_embeddings.projection.state_dict())
    theirs.norm.load_state_dict(base.vit.layernorm.state_dict())
    theirs.head.load_state_dict(base.classifier.original_module.state_dict())
    theirs.norm.eps = base.vit.layernorm.eps
    theirs.prompts.copy_(bank.gated_prompt_tokens["default"])
    for block, hf in zip(theirs.blocks, find_vision_transformer(base).blocks, strict=True):
        norms = [m for m in hf.modules() if isinstance(m, torch.nn.LayerNorm)]
        linears = {n: m for n, m in hf.named_modules() if isinstance(m, torch.nn.Linear)}
        q, k, v, proj, fc1, fc2 = _in_order(linears)
        for name in ("weight", "bias"):
            getattr(block.qkv, name).copy_(torch.cat([getattr(m, name) for m in (q, k, v)]))
            for to, of in ((block.proj, proj), (block.fc1, fc1), (block.fc2, fc2)):
                getattr(to, name).copy_(getattr(of, name))
        for to, of in zip((block.norm1, block.norm2), norms, strict=True):
            to.load_state_dict(of.state_dict())
            to.eps = of.eps
    torch.testing.assert_close(theirs(PIXELS), ours(PIXELS).logits, rtol=1e-4, atol=1e-5)


def _in_order(linears: dict[str, torch.nn.Linear]) -> list[torch.nn.Linear]:
    ends = (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("o_proj", "attention.output.dense"))
    ends += (("fc1", "intermediate.dense"), ("fc2", "output.dense"))
    found = []
    for names in ends:
        name = next(n for n in linears if n.endswith(names))
        found.append(linears.pop(name))
    return found


@torch.no_grad()
def test_extra_tokens_leave_before_the_head() -> None:
    model = extra_tokens("tiny", 4).eval()
    assert model.vit(PIXELS).last_hidden_state.shape == (2, 197, 32)
    assert not torch.equal(model(PIXELS).logits, plain("tiny", 4).eval()(PIXELS).logits)


def test_a_ratio_is_taken_within_a_round() -> None:
    assert ratio({"one": [2.0, 30.0, 4.0], "other": [1.0, 10.0, 2.0]}, "one", "other") == 2.0


def test_peak_memory_is_that_of_the_child() -> None:
    held = torch.ones(2**28)  # 1 GiB in this process
    assert peak_memory("plain", 1, Setting("tiny", batch=1)) < 1000
    assert held[0] == 1


def test_the_table_is_written_and_not_measured_twice(tmp_path: Path, capsys) -> None:
    argv = ["--sizes", "tiny", "--prompts", "4", "--memory_prompts", "0", "--contenders", "plain", "gated"]
    argv += ["--batch", "1", "--rounds", "2", "--output_dir", str(tmp_path)]
    first = main(argv)
    assert json.loads((tmp_path / "results.json").read_text()) == first
    assert len(first["tables"]["tiny-4"]["train_step"]["gated"]) == 2
    text = (tmp_path / "results.md").read_text()
    assert "| (a) plain ViT |" in text
    assert "P = 4" in text
    assert text in capsys.readouterr().out
    assert main(argv)["tables"] == first["tables"]
    with pytest.raises(SystemExit, match=r"measured with.*'batch': 1.*not.*'batch': 2.*another --output_dir"):
        main([*argv, "--batch", "2"])
    with pytest.raises(SystemExit, match=r"unknown contenders lola. Choose from: plain"):
        main(["--contenders", "lola"])
