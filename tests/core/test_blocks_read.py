"""A head that reads several blocks: against backbones that end there, with every kind of prompt; what it refuses."""

import copy
import threading
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

import gated_prompt
from gated_prompt import GatedPromptConfig
from gated_prompt.errors import ConfigError
from gated_prompt.heads import TokenClassifier, read_tokens

SIZES = dict(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=16, patch_size=8)
MODES = {
    "gated": dict(num_virtual_tokens=3, prompt_dropout=0.0),
    "shallow": dict(num_virtual_tokens=3, gates=False, temperature=False, prompt_dropout=0.0),
    "deep": dict(num_virtual_tokens=3, deep=True, temperature=False, prompt_dropout=0.0),
    "zero start": dict(num_virtual_tokens=3, deep=True, zero_start=True, temperature=False, prompt_dropout=0.0),
}


def backbone(kind: str = "vit", depth: int = 4) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = SIZES | {"num_hidden_layers": depth}
    if kind == "vit":
        return ViTModel(ViTConfig(**sizes, intermediate_size=32), add_pooling_layer=False).eval()
    return Dinov2Model(Dinov2Config(**sizes)).eval()


def shortened(model: torch.nn.Module, depth: int) -> torch.nn.Module:
    short = copy.deepcopy(model)
    short.load_state_dict(model.state_dict())
    layers = short.encoder.layer if hasattr(short, "encoder") and hasattr(short.encoder, "layer") else short.layers
    del layers[depth:]
    return short


PIXELS = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_the_blocks_are_those_of_backbones_that_end_there(kind: str) -> None:
    whole = backbone(kind)
    model = TokenClassifier(whole, 5, "both", blocks=[0, 2, 3]).eval()
    seen = []
    model.classifier.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(PIXELS)
        plain = backbone(kind)
        wanted = [read_tokens(shortened(plain, n)(PIXELS).last_hidden_state, 1, "both") for n in (1, 3, 4)]
    torch.testing.assert_close(seen[0], torch.cat(wanted, 1), rtol=0, atol=1e-6)
    assert model.classifier.in_features == 3 * 2 * 16


@pytest.mark.parametrize("mode", MODES)
def test_no_prompt_is_read(mode: str) -> None:
    """Each block of an adapted head on three against the same adapter read at that block alone."""
    settings = MODES[mode]
    model = get_peft_model(
        TokenClassifier(backbone(), 5, "both", blocks=[1, 2]), GatedPromptConfig(**settings, read_from=2)
    )
    model.eval()
    seen = []
    model.base_model.model.classifier.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    bank = model.base_model.model.gated_prompt
    with torch.no_grad():
        for name, parameter in bank.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) / 2 + 0.5)
        model(PIXELS)
        for place, last in enumerate((1, 2)):
            config = GatedPromptConfig(**settings, read_from=last)
            alone = get_peft_model(TokenClassifier(backbone(), 5, "both"), config).eval()
            own = dict(alone.base_model.model.gated_prompt.named_parameters())
            for name, parameter in bank.named_parameters():
                own[name].copy_(parameter[: len(own[name])])
            single: list[torch.Tensor] = []
            alone.base_model.model.classifier.register_forward_pre_hook(
                lambda _, args, found=single: found.append(args[0])
            )
            alone(PIXELS)
            if mode == "gated" and last == 1:
                continue  # alone, the last block has no gate; in the middle of a model it has one
            torch.testing.assert_close(seen[0][:, 32 * place : 32 * (place + 1)], single[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_it_is_saved_loaded_trained_and_called_in_threads(mode: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    config = GatedPromptConfig(**MODES[mode], read_from=2)
    model = get_peft_model(TokenClassifier(backbone(), 5, "both", blocks=[1, 2]), config)
    loss = model(PIXELS, labels=torch.tensor([0, 1, 2])).loss
    loss.backward()
    tokens = next(iter(model.base_model.model.gated_prompt.gated_prompt_tokens.values()))
    gates = getattr(model.base_model.model.gated_prompt, "gated_prompt_head_gates", None)
    assert tokens.grad.abs().sum() > 0 or any(gate.grad.abs().sum() > 0 for gate in gates.values())
    model.eval()
    gated_prompt.save(model, tmp_path)
    again = gated_prompt.load(TokenClassifier(backbone(), 5, "both", blocks=[1, 2]), tmp_path).eval()
    with torch.no_grad():
        wanted = model(PIXELS).logits
        assert torch.equal(again(PIXELS).logits, wanted)
        assert torch.equal(copy.deepcopy(again)(PIXELS).logits, wanted)
        found: dict[int, torch.Tensor] = {}

        def call(index: int) -> None:
            with torch.no_grad():
                found[index] = again(PIXELS[index : index + 1]).logits

        threads = [threading.Thread(target=call, args=(index,)) for index in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    torch.testing.assert_close(torch.cat([found[index] for index in range(3)]), wanted)


def test_a_mixed_batch_is_each_adapter_alone(tmp_path: Path) -> None:
    config = GatedPromptConfig(**MODES["gated"], read_from=2)
    model = get_peft_model(TokenClassifier(backbone(), 5, "both", blocks=[1, 2]), config)
    model.add_adapter("other", GatedPromptConfig(**MODES["gated"], read_from=2))
    model.eval()
    with torch.no_grad():
        mixed = model(PIXELS[:2], adapter_names=["default", "other"]).logits
        first = model(PIXELS[:1]).logits
        model.set_adapter("other")
        second = model(PIXELS[1:2]).logits
    torch.testing.assert_close(mixed, torch.cat((first, second)))


@pytest.mark.parametrize("blocks", [[], [2, 1], [1, 1], [4], [-1]])
def test_other_blocks_are_refused(blocks: list[int]) -> None:
    with pytest.raises(ConfigError, match="Expected ascending indices from 0 to 3"):
        TokenClassifier(backbone(), 2, blocks=blocks)
