"""Models and images for prompts that start from images."""

import torch
from peft import PeftModel, get_peft_model

from gated_prompt import GatedPromptConfig

from .models import bank_of, images, vit

BATCHES = [images(4), images(3, seed=2), images(5, seed=3)]


METHODS = ["sample", "mean", "max", "kmeans", "match"]


def make(count: int = 6, base: torch.nn.Module | None = None, **settings: object) -> PeftModel:
    torch.manual_seed(1)
    return get_peft_model(base or vit(), GatedPromptConfig(num_virtual_tokens=count, **settings))


def prompts(model: PeftModel) -> torch.Tensor:
    """Prompts (S, P, D) of the active adapter."""
    bank = bank_of(model)
    adapter = bank.adapters_in_use[0]
    blocks = range(
        adapter.config.insert_at, adapter.num_layers if adapter.config.deep else adapter.config.insert_at + 1
    )
    return torch.stack([bank.tokens(adapter, block) for block in blocks]).detach()


@torch.no_grad()
def block_inputs(base: torch.nn.Module, block: int) -> torch.Tensor:
    """Patch tokens (B, N, D) that enter a block, from the hidden states that transformers reports."""
    found = [base(pixels, output_hidden_states=True).hidden_states[block][:, 1:] for pixels in BATCHES]
    return torch.cat(found)


def places(rows: torch.Tensor, candidates: torch.Tensor) -> list[int]:
    """Index of each row (P, D) among the candidates (M, D); -1 where it is none of them."""
    distances = torch.cdist(rows.double(), candidates.double())
    return [int(i) if d < 1e-5 else -1 for d, i in zip(*distances.min(1), strict=True)]
