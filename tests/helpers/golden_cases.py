"""Read the golden files (see golden/README.md) and rebuild each case as a PEFT model."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import ViTConfig, ViTForImageClassification

from gated_prompt import GatedPromptConfig

from .models import bank_of

FOLDER = Path(__file__).parents[1] / "golden"
NAMES = sorted(path.stem for path in FOLDER.glob("*.safetensors"))


@dataclass
class Case:
    """One run of the official code; tensors by their official names, in float32 or float64."""

    name: str
    dtype: torch.dtype

    @cached_property
    def meta(self) -> dict:
        with safe_open(FOLDER / f"{self.name}.safetensors", "pt") as file:
            return json.loads(file.metadata()["meta"])

    @cached_property
    def single(self) -> dict[str, torch.Tensor]:
        return load_file(FOLDER / f"{self.name}.safetensors")

    @cached_property
    def expected(self) -> dict[str, torch.Tensor]:
        """Outputs, gradients and parameters after each step, from the run in this case's precision."""
        return self.single if self.dtype == torch.float32 else load_file(FOLDER / "f64" / f"{self.name}.safetensors")

    @cached_property
    def state(self) -> dict[str, torch.Tensor]:
        state = {k.removeprefix("state."): v.to(self.dtype) for k, v in self.single.items() if k.startswith("state.")}
        if self.dtype == torch.float64 and self.name == "moco_clamp":  # here 0.01 is the double, not float32(0.01)
            state["enc.temp"] = torch.tensor([float(f"{t:.6g}") for t in state["enc.temp"]], dtype=torch.float64)
        return state

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        index = self.single["input.batch_index"][step]
        return self.single["input.images"][index].to(self.dtype), self.single["input.labels"][step]

    def model(self) -> PeftModel:
        """The case as ViTForImageClassification with gated prompts, holding the official initial state."""
        config = self.config()
        model = get_peft_model(self.base(), config)
        bank, state = bank_of(model), self.state
        tokens = state["enc.prompt_embeddings"]
        if config.deep:
            tokens = torch.cat((tokens, state["enc.deep_prompt_embeddings"]))
        bank.gated_prompt_tokens["default"].data.copy_(tokens)
        if config.gates and not config.deep:
            bank.gated_prompt_gate_logits["default"].data.copy_(state["enc.gate_logit"])
        if config.temperature:
            bank.gated_prompt_temperatures["default"].data.copy_(state["enc.temp"])
        return model

    def config(self) -> GatedPromptConfig:
        deep = "deep" in self.name
        pooling = None
        if self.name.startswith("mae"):
            pooling = {"mae_img_pool": "patches", "mae_prompt_pool": "prompts"}.get(self.name, "prompts_and_patches")
        return GatedPromptConfig(
            num_virtual_tokens=6,
            deep=deep,
            gates="enc.gate_logit" in self.state,
            temperature="enc.temp" in self.state and not deep,
            prompt_dropout=0.0,
            pooling=pooling,
        )

    def base(self) -> ViTForImageClassification:
        arch = ViTConfig(
            image_size=32,
            patch_size=8,
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=128,
            layer_norm_eps=1e-6,
            num_labels=5,
            attn_implementation="sdpa",  # eager attention computes the softmax in float32
        )
        model = ViTForImageClassification(arch).to(self.dtype)
        model.load_state_dict(self._base_state(set(model.state_dict())), strict=True)
        return model

    def _base_state(self, wanted: set[str]) -> dict[str, torch.Tensor]:
        s = {k.removeprefix("enc."): v for k, v in self.state.items()}
        five = "vit.layers.0.attention.q_proj.weight" in wanted  # transformers 5 renamed the modules of ViT
        names = _NAMES_5 if five else _NAMES_4
        out = {
            "vit.embeddings.cls_token": s["cls_token"],
            "vit.embeddings.position_embeddings": s["pos_embed"],
            "classifier.weight": s["head.last_layer.weight"],
            "classifier.bias": s["head.last_layer.bias"],
        }
        for part in ("weight", "bias"):
            out[f"vit.embeddings.patch_embeddings.projection.{part}"] = s[f"patch_embed.proj.{part}"]
            out[f"vit.layernorm.{part}"] = s[f"norm.{part}"]
            for i in range(4):
                block = f"vit.layers.{i}." if five else f"vit.encoder.layer.{i}."
                qkv = s[f"blocks.{i}.attn.qkv.{part}"].chunk(3)
                values = (*qkv, *(s[f"blocks.{i}.{n}.{part}"] for n in _OFFICIAL))
                out |= {f"{block}{name}.{part}": value for name, value in zip(names, values, strict=True)}
        return out


_OFFICIAL = ("attn.proj", "norm1", "norm2", "mlp.fc1", "mlp.fc2")
_NAMES_5 = (
    *("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj"),
    *("layernorm_before", "layernorm_after", "mlp.fc1", "mlp.fc2"),
)
_NAMES_4 = (
    *("attention.attention.query", "attention.attention.key", "attention.attention.value", "attention.output.dense"),
    *("layernorm_before", "layernorm_after", "intermediate.dense", "output.dense"),
)


def official_parameters(model: PeftModel, gradient: bool = False) -> dict[str, torch.Tensor]:
    """The trainable parameters of a rebuilt case, or their gradients, under the official names."""
    found = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        tensor = parameter.grad if gradient else parameter.detach()
        if "gated_prompt_tokens" in name:
            found["enc.prompt_embeddings"] = tensor[:1]
            if len(tensor) > 1:
                found["enc.deep_prompt_embeddings"] = tensor[1:]
        elif "gate_logits" in name:
            found["enc.gate_logit"] = tensor
        elif "temperatures" in name:
            found["enc.temp"] = tensor
        else:
            found["head.last_layer." + name.rpartition(".")[2]] = tensor
    return found
