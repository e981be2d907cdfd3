"""The small adapters in `fixtures/adapters`, and the base and images that their logits were computed with.

Write them again, into a new folder (those that are committed stay as their version wrote them):

    PYTHONPATH=.:tests python -m helpers.adapter_fixtures FOLDER
"""

import json
import sys
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from transformers import ViTConfig, ViTForImageClassification

import gated_prompt
from gated_prompt import GatedPromptConfig

FOLDER = Path(__file__).parents[1] / "fixtures" / "adapters"
CASES = {
    "gated": {},
    "deep": {"deep": True},
    "shallow_at_2": {"insert_at": 2, "gates": False, "temperature": False},
    "low_rank": {"prompt_rank": 2},
    "hard_gates": {"hard_gates": True, "gated_blocks": [0, 1, 2, 3], "pooling": "prompts"},
    "read_from_1": {"read_from": 1, "modules_to_save": []},
    "no_head": {"modules_to_save": [], "gated_blocks": [0, 2], "pooling": "prompts_and_patches"},
}


def fill(tensor: torch.Tensor, scale: float, phase: float) -> None:
    """A formula of shape alone: no generator, no names and no order, which differ between versions."""
    steps = torch.arange(tensor.numel(), dtype=torch.float64)
    values = scale * torch.sin(0.37 * steps**2 + 0.1 * tensor.numel() + phase)
    tensor.data.copy_(values.reshape(tensor.shape))


def tiny_base() -> ViTForImageClassification:
    config = ViTConfig(
        image_size=16, patch_size=8, hidden_size=8, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16,
        num_labels=3,
    )  # fmt: skip
    model = ViTForImageClassification(config).eval()
    for parameter in model.parameters():
        fill(parameter, 0.7, 0.0)
    return model


def logits(model: torch.nn.Module) -> torch.Tensor:
    """Logits (2, 3) of two images."""
    images = torch.empty(2, 3, 16, 16)
    fill(images, 1.0, 0.5)
    with torch.no_grad():
        return model.eval()(images).logits


def make(settings: dict[str, object]) -> PeftModel:
    model = get_peft_model(tiny_base(), GatedPromptConfig(num_virtual_tokens=3, **settings))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            fill(parameter, 1.0, 1.0)
        if "temperatures" in name:
            parameter.data.abs_().add_(0.5)
    return model


def main(folder: Path) -> None:
    for name, settings in CASES.items():
        model = make(settings)
        gated_prompt.save(model, folder / name)
        (folder / name / "README.md").unlink()
        (folder / name / "logits.json").write_text(json.dumps(logits(model).tolist(), indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
