"""Half-precision bases, autocast, and adapters created on the meta device."""

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model

from gated_prompt import GatedPromptConfig
from helpers.models import bank_of, images, vit

# PEFT 0.18 reads a further adapter into half-precision parameters before it casts them up, with every method.
ROUNDS = peft.__version__.startswith("0.18.")
HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def config(**settings: object) -> GatedPromptConfig:
    return GatedPromptConfig(**{"num_virtual_tokens": 3, "prompt_dropout": 0.0, **settings})


def bank(model: PeftModel) -> torch.nn.Module:
    return bank_of(model)


def adapter(model: PeftModel, name: str = "default") -> dict[str, torch.Tensor]:
    """The parameters of one adapter in the bank, by name."""
    kinds = {kind: getattr(bank(model), kind) for kind in bank(model).adapter_layer_names}
    return {kind: tensors[name] for kind, tensors in kinds.items() if name in tensors}


def randomise(model: PeftModel) -> None:
    for parameter in adapter(model).values():
        parameter.data.uniform_(0.5, 1.5)


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
def test_a_half_precision_base_gets_single_precision_prompts(half: torch.dtype) -> None:
    """As PEFT's other methods: steps of a small learning rate would be lost in half precision."""
    model = get_peft_model(vit().to(half), config())
    assert {p.dtype for p in adapter(model).values()} == {torch.float32}
    model = get_peft_model(vit().to(half), config(), autocast_adapter_dtype=False)
    assert {p.dtype for p in adapter(model).values()} == {half}


@pytest.mark.parametrize("autocast_adapter_dtype", [True, False])
def test_a_half_precision_base_trains(autocast_adapter_dtype: bool) -> None:
    model = get_peft_model(vit().bfloat16(), config(), autocast_adapter_dtype=autocast_adapter_dtype).train()
    logits = model(pixel_values=images().bfloat16()).logits
    assert logits.dtype == torch.bfloat16  # the base decides: one float32 factor would turn all of it to float32
    torch.nn.functional.cross_entropy(logits.float(), torch.tensor([1, 4])).backward()
    for kind, parameter in adapter(model).items():
        assert parameter.grad.dtype == parameter.dtype and parameter.grad.abs().max() > 0, kind


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
def test_every_block_runs_in_the_precision_of_the_base(half: torch.dtype) -> None:
    model, seen = get_peft_model(vit().to(half), config(temperature_init=2.0)).eval(), set()
    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda m, args, out: seen.add(out.dtype))
    with torch.no_grad():
        model(pixel_values=images().to(half))
    assert seen == {half}


@pytest.mark.parametrize("settings", [{}, {"deep": True}, {"insert_at": 2, "temperature": False}])
def test_bfloat16_is_near_float32(settings: dict) -> None:
    torch.manual_seed(0)
    model = get_peft_model(vit(), config(**settings)).eval()
    with torch.no_grad():
        wanted = model(pixel_values=images()).logits
        with torch.autocast("cpu", torch.bfloat16):
            autocast = model(pixel_values=images()).logits
        half = model.bfloat16()(pixel_values=images().bfloat16()).logits.float()
    scale = wanted.abs().max()
    assert 0 < (autocast - wanted).abs().max() < 0.05 * scale
    assert 0 < (half - wanted).abs().max() < 0.05 * scale


def test_autocast_gradients_are_near_float32() -> None:
    grads = []
    for enabled in (False, True):
        torch.manual_seed(0)
        model = get_peft_model(vit(), config(gate_init=0.0)).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = model(pixel_values=images()).logits
        torch.nn.functional.cross_entropy(logits.float(), torch.tensor([1, 4])).backward()
        grads.append({kind: p.grad for kind, p in adapter(model).items()})
    for kind, wanted in grads[0].items():
        assert grads[1][kind].dtype == torch.float32
        cosine = torch.cosine_similarity(grads[1][kind].flatten(), wanted.flatten(), dim=0)
        assert cosine > 0.98, f"{kind}: {cosine}"


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
@pytest.mark.parametrize("half", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_loading_gives_the_saved_tensors(tmp_path, half: torch.dtype, low_cpu_mem_usage: bool) -> None:
    saved = get_peft_model(vit().to(half), config()).eval()
    randomise(saved)
    saved.save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(vit().to(half), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage).eval()
    model.load_adapter(tmp_path, "second", low_cpu_mem_usage=low_cpu_mem_usage)
    pixels = images().to(half)
    with torch.no_grad():
        assert torch.equal(model(pixel_values=pixels).logits, saved(pixel_values=pixels).logits)
        for name in ("default", "second"):
            for kind, parameter in adapter(model, name).items():
                assert parameter.device.type == "cpu", f"{kind} of {name} is on {parameter.device}"
                found, expected = parameter, adapter(saved)[kind]
                if ROUNDS and name == "second" and not low_cpu_mem_usage:
                    expected = expected.to(half)
                assert torch.equal(found, expected.float()), f"{kind} of {name}"
    assert not [n for n, p in model.named_parameters() if p.is_meta]


def test_an_adapter_loaded_through_meta_can_be_trained(tmp_path) -> None:
    get_peft_model(vit(), config()).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(vit(), tmp_path, low_cpu_mem_usage=True, is_trainable=True).train()
    before = {kind: p.detach().clone() for kind, p in adapter(model).items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    torch.nn.functional.cross_entropy(model(pixel_values=images()).logits, torch.tensor([1, 4])).backward()
    optimizer.step()
    for kind, parameter in adapter(model).items():
        assert not torch.equal(parameter, before[kind]), kind
