"""Prompts that start from images: which tokens they are, by method, layer, seed and kind of batch."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from sklearn.cluster import KMeans
from torch.utils.data import DataLoader, TensorDataset
from transformers import BatchFeature

import gated_prompt
from gated_prompt import GatedPromptConfig, initialize_prompts
from gated_prompt.starts.tokens import windows
from helpers.models import vit
from helpers.starts import BATCHES, METHODS, block_inputs, make, places, prompts


@torch.no_grad()
def projected(base: torch.nn.Module) -> torch.Tensor:
    """Output (B, N, D) of the patch projection."""
    conv = next(m for m in base.modules() if isinstance(m, torch.nn.Conv2d))
    return conv(torch.cat(BATCHES)).flatten(2).transpose(1, 2)


def pooled(tokens: torch.Tensor, how: str, count: int) -> torch.Tensor:
    """Windows by hand: (B N / w, D)."""
    width = tokens.shape[1] // (count - 1)
    starts = [*range(0, width * (count - 1), width), width * (count - 1)]
    ends = [*starts[1:], tokens.shape[1]]
    parts = [tokens[:, a:b] for a, b in zip(starts, ends, strict=True) if b > a]
    made = [part.mean(1) if how == "mean" else part.max(1).values for part in parts]
    return torch.stack(made, 1).flatten(0, 1)


@pytest.mark.parametrize("deep", [False, True], ids=["shallow", "deep"])
@pytest.mark.parametrize("method", ["sample", "mean", "max"])
def test_prompts_are_rows_of_what_the_block_gets(method: str, deep: bool) -> None:
    model = make(deep=deep)
    initialize_prompts(model, BATCHES, method=method)
    found = prompts(model)
    assert len(found) == (4 if deep else 1)
    taken = []
    for block, rows in enumerate(found):
        tokens = block_inputs(vit(), block)
        candidates = tokens.flatten(0, 1) if method == "sample" else pooled(tokens, method, 6)
        taken.append(places(rows, candidates))
        assert -1 not in taken[-1] and len(set(taken[-1])) == 6
    assert len(set(map(tuple, taken))) == len(taken)  # every block has a choice of its own


def test_the_sample_is_that_of_the_smallest_random_keys() -> None:
    model = make()
    initialize_prompts(model, BATCHES, seed=11)
    keys = np.random.default_rng((11, 0)).random(12 * 16)
    assert places(prompts(model)[0], block_inputs(vit(), 0).flatten(0, 1)) == keys.argsort()[:6].tolist()


def test_windows_with_a_rest_and_with_none() -> None:
    assert windows(196, 20) == [10] * 19 + [6]
    assert windows(196, 100) == [1] * 99 + [97]
    assert windows(16, 5) == [4] * 4
    assert windows(16, 1) == windows(16, 2) == [16]
    assert windows(4, 50) == [1] * 4


def test_insert_at_reads_the_block_of_the_prompts() -> None:
    model = make(insert_at=2)
    initialize_prompts(model, BATCHES)
    assert -1 not in places(prompts(model)[0], block_inputs(vit(), 2).flatten(0, 1))
    assert places(prompts(model)[0], block_inputs(vit(), 1).flatten(0, 1)) == [-1] * 6


def test_before_positions_is_about_block_0_only() -> None:
    model = make(deep=True)
    initialize_prompts(model, BATCHES, before_positions=True)
    first, second, *_ = prompts(model)
    assert -1 not in places(first, projected(vit()).flatten(0, 1))
    assert places(first, block_inputs(vit(), 0).flatten(0, 1)) == [-1] * 6
    assert -1 not in places(second, block_inputs(vit(), 1).flatten(0, 1))


def inertia(tokens: torch.Tensor, centres: torch.Tensor) -> float:
    return float((torch.cdist(tokens.double(), centres.double()).min(1).values ** 2).sum())


def test_centres_are_about_as_good_as_those_of_full_k_means() -> None:
    """Inertia at most 1.05 times that of scikit-learn's KMeans on the same tokens; a random choice has 1.5 times."""
    found = {}
    for method in ("kmeans", "sample"):
        model = make()
        initialize_prompts(model, BATCHES, method=method)
        found[method] = prompts(model)[0]
    tokens = block_inputs(vit(), 0).flatten(0, 1)
    best = KMeans(6, n_init=10, random_state=0).fit(tokens.numpy()).inertia_
    assert 0.999 * best < inertia(tokens, found["kmeans"]) < 1.05 * best
    assert inertia(tokens, found["sample"]) > 1.5 * best


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("method", METHODS)
def test_the_seed_decides_and_nothing_else_does(method: str, rank: int | None) -> None:
    found = {}
    for noise, seed in ((0, 5), (1, 5), (2, 6)):
        model = make(deep=True, prompt_rank=rank)
        torch.manual_seed(noise)
        initialize_prompts(model, BATCHES, method=method, seed=seed)
        found[noise] = prompts(model)
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2], atol=1e-4)


def test_a_shuffling_loader_gives_the_same_prompts_and_draws_from_no_global_generator() -> None:
    loader = DataLoader(TensorDataset(torch.cat(BATCHES), torch.arange(12)), batch_size=5, shuffle=True)
    found = []
    for noise in (0, 1):
        model = make()
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        initialize_prompts(model, loader)
        assert torch.equal(torch.get_rng_state(), before)
        found.append(prompts(model))
    assert torch.equal(*found)


def test_batches_of_every_kind() -> None:
    found = []
    kinds = (
        lambda pixels: pixels,
        lambda pixels: {"pixel_values": pixels, "labels": torch.zeros(len(pixels))},
        lambda pixels: BatchFeature({"pixel_values": pixels}),
        lambda pixels: (pixels, torch.zeros(len(pixels))),
        lambda pixels: [pixels, ["cat"] * len(pixels)],
        lambda pixels: {"pixel_values": pixels, "interpolate_pos_encoding": True},
    )
    for kind in kinds:
        model = make()
        initialize_prompts(model, (kind(pixels) for pixels in BATCHES))
        found.append(prompts(model))
    assert all(torch.allclose(other, found[0], atol=1e-5) for other in found)


def test_another_adapter_than_the_active_one() -> None:
    model = make()
    model.add_adapter("birds", GatedPromptConfig(num_virtual_tokens=2, insert_at=1))
    before = prompts(model)
    initialize_prompts(model, BATCHES, adapter_name="birds")
    assert torch.equal(prompts(model), before)
    model.set_adapter("birds")
    assert -1 not in places(prompts(model)[0], block_inputs(vit(), 1).flatten(0, 1))


def test_saving_and_loading_keeps_them(tmp_path) -> None:
    model = make(prompt_rank=2, deep=True)
    initialize_prompts(model, BATCHES, method="mean")
    gated_prompt.save(model, tmp_path)
    again = gated_prompt.load(vit(), tmp_path)
    assert torch.equal(prompts(again), prompts(model))


def test_shallow_prompts_cost_no_block() -> None:
    """The forward ends where the last token was seen."""
    model, calls = make(), []
    blocks = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
    blocks[0].register_forward_hook(lambda *_: calls.append(0))
    initialize_prompts(model, BATCHES)
    assert not calls
    deep = make(deep=True)
    blocks = next(m for m in deep.modules() if isinstance(m, torch.nn.ModuleList))
    for block in blocks:
        block.register_forward_hook(lambda *_: calls.append(0))
    initialize_prompts(deep, BATCHES)
    assert len(calls) == 3 * 3


def test_lora_below_is_part_of_the_base() -> None:
    """Tokens are those that the adapted blocks get, and "match" finds keys, values and output inside LoRA layers."""
    leaves = ["q_proj", "k_proj", "v_proj", "o_proj", "query", "key", "value", "dense", "fc1"]  # 4.57 and 5.x
    base = inject_adapter_in_model(LoraConfig(r=2, target_modules=leaves, init_lora_weights=False), vit())
    with torch.no_grad():
        tokens = base(BATCHES[0], output_hidden_states=True).hidden_states[2][:, 1:].flatten(0, 1)
    model = make(base=base, insert_at=2)
    initialize_prompts(model, BATCHES[:1])
    assert -1 not in places(prompts(model)[0], tokens)
    initialize_prompts(model, BATCHES, method="match", orthogonal=0.5)
    assert prompts(model).isfinite().all()
