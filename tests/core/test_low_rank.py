"""Low-rank prompts: initial values, gradients, files, and the best approximation of full-rank prompts."""

import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import gated_prompt
from gated_prompt import DamagedAdapterError, GatedPromptConfig, initialize_prompts
from gated_prompt.files.low_rank import factor_bound, factorise
from helpers.models import bank_of, images, vit

KEY = "base_model.model.gated_prompt.gated_prompt_tokens"


def make(**settings: object) -> PeftModel:
    return get_peft_model(vit(), GatedPromptConfig(**{"num_virtual_tokens": 6, "prompt_rank": 2, **settings}))


def parameters(model: PeftModel) -> dict[str, torch.nn.Parameter]:
    named = bank_of(model).named_parameters()
    return {name.removeprefix("gated_prompt_").removesuffix(".default"): p for name, p in named}


def test_the_bank_holds_two_factors_in_place_of_the_tokens() -> None:
    shapes = {name: tuple(p.shape) for name, p in parameters(make(deep=True)).items()}
    assert shapes == {"tokens_a": (4, 6, 2), "tokens_b": (4, 2, 32), "temperatures": (4,)}
    shapes = {name: tuple(p.shape) for name, p in parameters(make()).items()}
    assert shapes == {"tokens_a": (1, 6, 2), "tokens_b": (1, 2, 32), "gate_logits": (3,), "temperatures": (4,)}


@pytest.mark.parametrize("rank", [1, 4, 64])
def test_the_product_starts_with_the_variance_of_the_usual_start(rank: int) -> None:
    bound, torch_rng = 0.2, torch.Generator().manual_seed(0)
    a, b = ((torch.rand(3000, rank, generator=torch_rng) * 2 - 1) * factor_bound(bound, rank) for _ in range(2))
    assert (a * b).sum(1).std().item() == pytest.approx(bound / math.sqrt(3), rel=0.06)


def test_a_fresh_adapter_starts_at_the_scale_of_full_prompts() -> None:
    torch.manual_seed(0)
    models = (
        make(num_virtual_tokens=32, prompt_rank=16, deep=True),
        make(num_virtual_tokens=32, prompt_rank=None, deep=True),
    )
    low, full = (
        torch.stack([bank.tokens(bank.adapters_in_use[0], b) for b in range(4)])
        for bank in (bank_of(m) for m in models)
    )
    assert low.std().item() == pytest.approx(full.std().item(), rel=0.08)
    assert abs(low.mean().item()) < 0.1 * low.std().item()


def full(low: PeftModel) -> PeftModel:
    """A model with the same prompts at full rank, and otherwise equal."""
    bank = bank_of(low)
    adapter = bank.adapters_in_use[0]
    model = make(prompt_rank=None, deep=adapter.config.deep, prompt_dropout=adapter.config.prompt_dropout)
    others = {name: value for name, value in low.named_parameters() if "tokens" not in name}
    for name, value in others.items():
        model.get_parameter(name).data.copy_(value)
    tokens = bank_of(model).gated_prompt_tokens["default"]
    tokens.data.copy_(torch.stack([bank.tokens(adapter, block) for block in range(4 if adapter.config.deep else 1)]))
    return model


@pytest.mark.parametrize("deep", [False, True], ids=["gated", "deep"])
def test_it_computes_what_its_product_computes_and_learns_by_the_chain_rule(deep: bool) -> None:
    low = make(deep=deep, prompt_dropout=0.0).train()
    reference = full(low).train()
    outputs = [m(images()).logits for m in (low, reference)]
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
    for output in outputs:
        output.square().sum().backward()
    factors, tokens = parameters(low), parameters(reference)["tokens"]
    a, b = factors["tokens_a"], factors["tokens_b"]
    torch.testing.assert_close(a.grad, tokens.grad @ b.transpose(1, 2), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(b.grad, a.transpose(1, 2) @ tokens.grad, rtol=1e-3, atol=1e-4)
    assert a.grad.abs().sum() > 0 and b.grad.abs().sum() > 0


@pytest.mark.parametrize("deep", [False, True], ids=["gated", "deep"])
def test_save_load_save(tmp_path, deep: bool) -> None:
    model = make(deep=deep)
    gated_prompt.save(model, tmp_path / "first")
    sets = 4 if deep else 1
    shapes = {k: tuple(v.shape) for k, v in load_file(tmp_path / "first" / "adapter_model.safetensors").items()}
    assert {k: v for k, v in shapes.items() if "tokens" in k} == {f"{KEY}_a": (sets, 6, 2), f"{KEY}_b": (sets, 2, 32)}
    again = gated_prompt.load(vit(), tmp_path / "first")
    with torch.no_grad():
        assert torch.equal(again.eval()(images()).logits, model.eval()(images()).logits)
    gated_prompt.save(again, tmp_path / "second")
    first, second = (tmp_path / name / "adapter_model.safetensors" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


def rewrite(folder: Path, change) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(f"{KEY}_b"), rf"lacks {KEY}_b, expected with shape \(1, 2, 32\)"),
        (lambda t: t.update({f"{KEY}_a": torch.zeros(1, 6, 3)}), r"_a .* has shape \(1, 6, 3\), but .* \(1, 6, 2\)"),
        (lambda t: t.update({KEY: torch.zeros(1, 6, 32)}), rf"do not belong to this adapter: {KEY}\."),
        (lambda t: t.update({f"{KEY}_a": torch.full((1, 6, 2), torch.nan)}), "_a in .* holds NaN"),
    ],
    ids=["missing", "shape", "surplus", "nan"],
)
def test_damaged_factors_are_refused(tmp_path, change, words: str) -> None:
    gated_prompt.save(make(), tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(DamagedAdapterError, match=words):
        gated_prompt.load(vit(), tmp_path)


def test_factorising_is_the_best_approximation_and_balanced() -> None:
    tokens = torch.randn(3, 7, 12, generator=torch.Generator().manual_seed(0))
    a, b = factorise(tokens, 4)
    sizes = torch.linalg.svdvals(tokens)
    torch.testing.assert_close((tokens - a @ b).square().sum((1, 2)), sizes[:, 4:].square().sum(1))  # Eckart-Young
    torch.testing.assert_close(a.square().sum((1, 2)), b.square().sum((1, 2)))
    exact = factorise(tokens, 7)
    torch.testing.assert_close(exact[0] @ exact[1], tokens)


def test_a_start_from_images_is_cut_to_the_rank() -> None:
    both = []
    for rank in (3, None):
        model = make(prompt_rank=rank, deep=True)
        initialize_prompts(model, [images(4)], seed=3)
        bank = bank_of(model)
        both.append(torch.stack([bank.tokens(bank.adapters_in_use[0], block) for block in range(4)]).detach())
    left, sizes, right = torch.linalg.svd(both[1], full_matrices=False)
    torch.testing.assert_close(both[0], left[..., :3] * sizes[:, None, :3] @ right[:, :3], atol=1e-4, rtol=1e-4)


def test_two_ranks_on_one_model() -> None:
    model = make()
    model.add_adapter("wide", GatedPromptConfig(num_virtual_tokens=6))
    found = []
    for name in ("default", "wide"):
        model.set_adapter(name)
        with torch.no_grad():
            found.append(model.eval()(images()).logits)
    assert not torch.equal(*found)
    with torch.no_grad():
        mixed = model(pixel_values=images(), adapter_names=["default", "wide"]).logits
    torch.testing.assert_close(mixed, torch.stack((found[0][0], found[1][1])), atol=1e-5, rtol=1e-5)
    model.delete_adapter("wide")
    assert {n.split(".")[-1] for n, _ in model.named_parameters() if "gated_prompt_" in n} == {"default"}
    assert set(bank_of(model).fresh_prompts) == {"default"}


def test_it_is_exported_and_compiled_with_hard_gates() -> None:
    model = make(hard_gates=True, gate_init=0.5).eval()
    with torch.no_grad():
        wanted = model(images()).logits
        program = torch.export.export(model.base_model.model, (images(),), strict=False).module()
        torch.testing.assert_close(program(images()).logits, wanted, atol=1e-5, rtol=0)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(images()).logits, wanted, atol=1e-5, rtol=0)
    torch.compile(model.train(), backend="aot_eager", fullgraph=True)(images()).logits.square().sum().backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(g is not None and g.abs().sum() > 0 for g in gradients)
