"""Starts from images on families with other prefixes, attention layers and inputs."""

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from gated_prompt import GatedPromptConfig, GatedPromptError, find_vision_transformer, initialize_prompts
from helpers.families import DEPTH, HERE, WIDTH, Case
from helpers.models import bank_of, in_sequence

IDS = (
    "ViTForImageClassification", "Dinov2WithRegistersForImageClassification", "Dinov2Backbone", "DINOv3ViTModel",
    "ViTMAEForPreTraining", "BeitForImageClassification-mean", "CLIPModel", "SiglipVisionModel",
    "Siglip2VisionModel", "IJepaModel", "timm-like-cls", "timm-like-registers-qk-norm", "timm-like-rotary",
)  # fmt: skip
CASES = [case for case in HERE if case.id in IDS]
FIXED = [case for case in CASES if case.keeps == 1.0 and case.family != "SigLIP 2"]  # tokens have places
each = pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
each_fixed = pytest.mark.parametrize("case", FIXED, ids=[case.id for case in FIXED])


def make(case: Case, count: int) -> PeftModel:
    torch.manual_seed(1)
    return get_peft_model(case.build(), GatedPromptConfig(num_virtual_tokens=count, deep=True, prompt_dropout=0.0))


def batch(case: Case) -> object:
    """What a loader would give: bare pixels where the model needs no more."""
    inputs = case.inputs()
    return inputs if case.family in ("SigLIP 2", "ViT-MAE") else inputs["pixel_values"]


def prompts(model: PeftModel) -> torch.Tensor:
    return bank_of(model).gated_prompt_tokens["default"].detach()


@torch.no_grad()
def seen(case: Case, model: nn.Module, modules: list[nn.Module], output: bool) -> list[torch.Tensor]:
    """First argument or output of each module in one forward of the whole model."""
    found: dict[int, torch.Tensor] = {}
    handles = [
        m.register_forward_hook(lambda m, args, out: found.__setitem__(id(m), out if output else args[0]))
        for m in modules
    ]
    case.run(model.eval())
    for handle in handles:
        handle.remove()
    return [found[id(m)] for m in modules]


def visible(case: Case, tokens: torch.Tensor) -> torch.Tensor:
    """Patch tokens (M, D) of all images in hidden states (B, N, D), without prefix and padding."""
    patches = tokens[:, case.prefix :]
    mask = case.inputs().get("pixel_attention_mask")
    return patches.flatten(0, 1) if mask is None else patches[mask.bool()]


def test_the_cases_are_there() -> None:
    assert {case.id for case in CASES} == set(IDS)


@each
def test_a_sample_of_everything_is_every_patch_token_and_nothing_else(case: Case) -> None:
    base = case.build().requires_grad_(False)  # frozen: SigLIP's pool takes another kernel for weights that are not
    inputs = seen(case, base, find_vision_transformer(base).blocks, output=False)
    wanted = [visible(case, tokens) for tokens in inputs]
    model = make(case, count=len(wanted[0]))
    initialize_prompts(model, [batch(case)])
    assert len(wanted) == DEPTH
    for found, tokens in zip(prompts(model), wanted, strict=True):
        distances, places = torch.cdist(found.double(), tokens.double()).min(1)
        assert distances.max() < 1e-4
        assert sorted(places.tolist()) == list(range(len(tokens)))
        assert places.tolist() != sorted(places.tolist())
    with model.disable_adapter(), torch.no_grad():
        assert torch.equal(case.run(model.eval())[case.read_from][0], case.run(base)[case.read_from][0])


@each
@pytest.mark.parametrize("method", ["mean", "max", "kmeans"])
def test_the_other_methods_run(case: Case, method: str) -> None:
    model = make(case, count=4)
    before = prompts(model).clone()
    if case.family == "SigLIP 2" and method != "kmeans":
        with pytest.raises(GatedPromptError, match="some patch tokens are padding"):
            initialize_prompts(model, [batch(case)], method=method)
        return
    initialize_prompts(model, [batch(case)], method=method)
    assert prompts(model).isfinite().all()
    assert (prompts(model) - before).abs().amax((1, 2)).min() > 0.1
    with torch.no_grad():
        output = case.run(model.eval())[case.read_from]
    assert all(part.isfinite().all() for part in (output if isinstance(output, tuple) else (output,)))


@each
def test_before_positions_is_the_projection(case: Case) -> None:
    base = case.build()
    projection = find_vision_transformer(base).projection
    (out,) = seen(case, base, [projection], output=True)
    tokens = out.flatten(2).transpose(1, 2) if out.ndim > 3 else out
    mask = case.inputs().get("pixel_attention_mask")
    tokens = tokens.flatten(0, 1) if mask is None else tokens[mask.bool()]
    model = make(case, count=len(tokens))
    repeats = round(1 / case.keeps)  # MAE's blocks get fewer tokens than are projected, and prompts of their own
    initialize_prompts(model, [batch(case)] * repeats, before_positions=True)
    assert torch.cdist(prompts(model)[0].double(), tokens.double()).min(1).values.max() < 1e-4


def key_of(block: nn.Module) -> tuple[nn.Module, slice]:
    """The key projection of a block and the channels of its output that are keys."""
    named = {name.rpartition(".")[2]: module for name, module in block.named_modules()}
    if "qkv" in named:
        return named["qkv"], slice(WIDTH, 2 * WIDTH)
    return named.get("k_proj") or named["key"], slice(None)


@each_fixed
def test_matched_prompts_from_keys_as_the_adapter_itself_would_make_them(case: Case) -> None:
    """The random prompts' keys are read off a forward with these prompts in place, hooks of the package and all."""
    count, neighbours = 5, 3
    base = case.build()
    vit = find_vision_transformer(base)
    tokens = [t[:, case.prefix :].double().mean(0) for t in seen(case, base, vit.blocks, output=False)]
    modules, channels = zip(*map(key_of, vit.blocks), strict=True)
    keys = [
        k[:, case.prefix :, c].double().mean(0)
        for k, c in zip(seen(case, base, list(modules), output=True), channels, strict=True)
    ]
    bound = (6 / (3 * 8 * 8 + WIDTH)) ** 0.5
    rng = np.random.default_rng(4)
    random = torch.stack([torch.from_numpy(rng.uniform(-bound, bound, (count, WIDTH))) for _ in range(DEPTH)])

    model = make(case, count)
    prompts(model).copy_(random)
    there = find_vision_transformer(model.base_model.model).blocks
    with in_sequence(model):  # keys of all tokens come out of one call
        prompted = seen(case, model, [key_of(block)[0] for block in there], output=True)
    random_keys = [
        k[0, case.prefix : case.prefix + count, c].double() for k, c in zip(prompted, channels, strict=True)
    ]

    fresh = make(case, count)
    initialize_prompts(fresh, [batch(case)], method="match", seed=4, neighbours=neighbours)
    for block in range(DEPTH):
        similarity = torch.nn.functional.cosine_similarity(random_keys[block][:, None], keys[block][None], dim=-1)
        nearest = similarity.argsort(dim=1, descending=True)[:, :neighbours]
        wanted = torch.stack([tokens[block][row].mean(0) for row in nearest])
        torch.testing.assert_close(prompts(fresh)[block].double(), wanted, atol=1e-4, rtol=0)


def output_of(block: nn.Module) -> nn.Module:
    """The output projection of the attention: the Linear that runs first after queries, keys and values."""
    names = {"o_proj", "out_proj", "proj"}
    named = {name.rpartition(".")[2]: m for name, m in block.named_modules() if isinstance(m, nn.Linear)}
    return next((named[name] for name in names if name in named), None) or next(
        m for name, m in block.named_modules() if name.endswith("attention.output.dense")
    )


@each_fixed
def test_the_orthogonal_part_has_values_that_attention_never_gives(case: Case) -> None:
    made = {}
    for weight in (0.0, 0.25, 1.0):
        made[weight] = make(case, 3)
        initialize_prompts(made[weight], [batch(case)], method="match", orthogonal=weight)
    low, some, all_ = (prompts(made[weight]).double() for weight in (0.0, 0.25, 1.0))
    torch.testing.assert_close(some, 0.75 * low + 0.25 * all_, atol=1e-4, rtol=1e-4)
    base = case.build()
    blocks = find_vision_transformer(base).blocks
    mixed = seen(case, base, [output_of(block) for block in blocks], output=False)
    for block, outputs, found in zip(blocks, mixed, all_, strict=True):
        named = {name.rpartition(".")[2]: module for name, module in block.named_modules()}
        value = named.get("qkv") or named.get("v_proj") or named["value"]
        values = found @ value.weight.detach()[-WIDTH:].double().T
        mean = torch.nn.functional.normalize(outputs.double().mean(0), dim=-1)
        assert (values @ mean.T).abs().max() < 1e-3 * values.norm(dim=1).max()
        assert values.norm(dim=1).min() > 0.05


@pytest.mark.parametrize("places", [16, 7])
def test_more_random_prompts_than_an_image_has_patches(places: int) -> None:
    case = next(c for c in CASES if c.id == "SiglipVisionModel")
    many, few = make(case, 2 * 16 + 3), make(case, places)
    for model in (many, few):
        initialize_prompts(model, [batch(case)], method="match", neighbours=2)
    # The first prompts of block 0 come from the same random numbers.
    torch.testing.assert_close(prompts(many)[0, :places], prompts(few)[0], atol=1e-5, rtol=0)
