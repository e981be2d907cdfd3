"""Blocks below the prompts: without autograd, and kept per image in a file."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from peft import get_peft_model
from torch.utils.data import DataLoader, TensorDataset

from gated_prompt import GatedPromptConfig, GatedPromptError, find_vision_transformer
from gated_prompt.training.token_cache import CachedPrefix, StartAtBlock, cache_prefix
from helpers.families import HERE
from helpers.models import images, vit

DATA = TensorDataset(images(6), torch.tensor([0, 1, 2, 3, 4, 0]))


def make(base=vit, **settings):
    torch.manual_seed(4)
    config = {"num_virtual_tokens": 3, "insert_at": 2, "gate_init": 0.0, "prompt_dropout": 0.0, **settings}
    return get_peft_model(base(), GatedPromptConfig(**config))


def train(model, data, steps: int = 4) -> dict[str, torch.Tensor]:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.5, momentum=0.9)
    model.train()
    for _ in range(steps):
        for tokens, labels in DataLoader(data, 3):
            torch.nn.functional.cross_entropy(model(tokens).logits, labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def test_blocks_below_the_prompts_build_no_graph() -> None:
    model, needs = make(), []
    for block in find_vision_transformer(model.base_model.model).blocks:
        block.register_forward_pre_hook(lambda _m, args: needs.append(args[0].requires_grad))
    model.train()(images()).logits.sum().backward()
    assert needs == [False, False, False, True]  # hooks see what enters the block, before the prompts join it


def test_training_from_kept_tokens_is_training_from_pixels(tmp_path: Path) -> None:
    wanted = train(make(), DATA)
    model = make()
    kept = cache_prefix(model, DATA, tmp_path / "prefix.safetensors", Accelerator(cpu=True), batch_size=3)
    assert [path.name for path in tmp_path.iterdir()] == ["prefix.safetensors"]
    assert len(kept) == 6
    assert kept[4][0].shape == (17, 32)
    assert kept[4][1] == 4
    start = StartAtBlock(model)
    calls = []
    first = find_vision_transformer(model.base_model.model).blocks[0]
    next(m for m in first.modules() if isinstance(m, torch.nn.Linear)).register_forward_hook(
        lambda *_: calls.append(1)
    )
    start.open()
    found = train(model, kept)
    start.close()
    assert not calls
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert torch.equal(found[name], wanted[name]), name
    pixels = images(2)
    assert torch.equal(model.eval()(pixels).logits, _twin(found)(pixels).logits)
    assert calls


def _twin(parameters: dict[str, torch.Tensor]):
    model = make().eval()
    for name, value in parameters.items():
        model.get_parameter(name).data.copy_(value)
    return model


def test_workers_read_the_same_file(tmp_path: Path) -> None:
    kept = cache_prefix(make(), DATA, tmp_path / "prefix.safetensors", Accelerator(cpu=True))
    assert isinstance(kept, CachedPrefix)
    alone = torch.cat([tokens for tokens, _ in DataLoader(kept, 2)])
    assert torch.equal(torch.cat([tokens for tokens, _ in DataLoader(kept, 2, num_workers=1)]), alone)


def test_what_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GatedPromptError, match="--insert_at > 0"):
        cache_prefix(make(insert_at=0), DATA, tmp_path / "prefix.safetensors", Accelerator(cpu=True))
    rotated = next((c for c in HERE if c.id == "DINOv3ViTModel"), None)
    if rotated is None:
        pytest.skip("this transformers has no DINOv3")

    class WithLogits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = rotated.build()

        def forward(self, pixel_values: torch.Tensor):
            output = self.model(pixel_values)
            output.logits = output.pooler_output
            return output

    model = make(WithLogits).train()
    with pytest.raises(GatedPromptError, match="cannot start at block 2"):
        cache_prefix(model, DATA, tmp_path / "prefix.safetensors", Accelerator(cpu=True))
    assert model.training
    assert not list(tmp_path.iterdir())
