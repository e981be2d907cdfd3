"""LoRA inside the backbone and gated prompts around it: inject LoRA first, then wrap with gated prompts."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from gated_prompt import GatedPromptConfig
from helpers.models import images, vit


def lora_base(*leaves: str) -> torch.nn.Module:
    """The tiny ViT with LoRA on its Linears of these names, which differ between transformers 4 and 5."""
    config = LoraConfig(r=2, target_modules=list(leaves), init_lora_weights=False)
    torch.manual_seed(5)
    return inject_adapter_in_model(config, vit(), adapter_name="low_rank")


def stacked(**settings: object) -> PeftModel:
    base = lora_base("q_proj", "query", "fc1", "dense")
    torch.manual_seed(6)
    return get_peft_model(base, GatedPromptConfig(**{"num_virtual_tokens": 3, "prompt_dropout": 0.0, **settings}))


def query(model: torch.nn.Module, block: int = 1) -> torch.nn.Module:
    return [m for n, m in model.named_modules() if n.rpartition(".")[2] in ("q_proj", "query")][block]


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(pixel_values=images()).logits


def test_the_queries_are_lora_layers() -> None:
    assert isinstance(query(stacked()), LoraLayer)


def test_temperature_divides_the_adapted_queries() -> None:
    plain, scaled = stacked(temperature=False), stacked(temperature_init=4.0)
    seen, made = [], []

    def record(module, q, k, v, mask, **kwargs):
        seen.append(q.transpose(1, 2).flatten(2))
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, q, k, v, mask, **kwargs)

    AttentionInterface.register("record", record)
    for model in (plain, scaled):
        model.base_model.model.config._attn_implementation = "record"
        query(model, 0).register_forward_hook(lambda module, args, out: made.append((module, args[0], out)))
        logits(model)
    attended, divided = seen[0], seen[4]
    (layer, tokens, queries), (_, same_tokens, _) = made
    assert torch.equal(tokens, same_tokens)
    assert torch.equal(attended, queries)
    assert not torch.allclose(queries, layer.base_layer(tokens))  # LoRA has its part in them
    torch.testing.assert_close(divided, attended / 4.0)


def test_both_change_the_output_and_unload_gives_the_lora_model_back() -> None:
    below = logits(lora_base("q_proj", "query", "fc1", "dense"))
    model = stacked()
    assert not torch.allclose(below, logits(vit())) and not torch.allclose(logits(model), below)
    with model.disable_adapter():
        assert torch.equal(logits(model), below)
    assert torch.equal(logits(model.unload()), below)


def test_both_train_where_the_user_says_so() -> None:
    """PEFT freezes what is not the new tuner's; LoRA below is switched on again by hand."""
    model = stacked(gate_init=0.0)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.requires_grad_(True)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    before = {n: p.detach().clone() for n, p in trained.items()}
    assert any("lora_A" in n for n in trained) and any("gated_prompt_tokens" in n for n in trained)
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    torch.nn.functional.cross_entropy(model.train()(pixel_values=images()).logits, torch.tensor([1, 4])).backward()
    optimizer.step()
    for name, parameter in trained.items():
        assert not torch.equal(parameter, before[name]), f"{name} did not move"


@pytest.mark.parametrize("settings", [{}, {"deep": True}], ids=["gated", "deep"])
def test_the_prompts_are_saved_without_lora_and_fit_the_stack_again(tmp_path, settings: dict) -> None:
    model = stacked(**settings)
    wanted = logits(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(lora_base("q_proj", "query", "fc1", "dense"), tmp_path)
    assert torch.equal(logits(loaded), wanted)
