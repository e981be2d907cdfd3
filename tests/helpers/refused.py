# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Models that are refused, as tiny random ones, with what they are: `test_families_refused.py` proves them, and
docs/families.md shows the messages that they get.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers
from peft import get_peft_model
from torch import nn

from gated_prompt import ArchitectureError, GatedPromptConfig

from . import timm_like
from .families import DEPTH, PIXELS, SIZE, TINY, Inputs, images

TEXT = {**TINY, "vocab_size": 20}
VISION = {**TINY, **PIXELS}
STAGES = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 2}
HIERA = {"image_size": [32, 32], "embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2], "query_stride": [2, 2]}
HIERA |= {"num_query_pool": 1, "masked_unit_size": [4, 4]}
SPEECH = {"conv_dim": [8, 8], "conv_kernel": [4, 4], "conv_stride": [2, 2], "num_conv_pos_embeddings": 4}
BYTES = {"model_type": "bart", "vocab_size": 60, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2}
BYTES |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 37, "decoder_ffn_dim": 37}
DAVIT = {"in_channels": 3, "depths": [1, 1, 1, 1], "embed_dim": [8, 8, 16, 32], "num_heads": [1, 1, 2, 4]}
DAVIT |= {"num_groups": [1, 1, 2, 4], "patch_size": [7, 3, 3, 3], "patch_stride": [4, 2, 2, 2], "window_size": 4}
DAVIT |= {"patch_padding": [3, 1, 1, 1], "projection_dim": 32}
JEPA = {**TINY, "hidden_size": 36, "num_attention_heads": 2, "crop_size": 32, "patch_size": 8, "frames_per_clip": 4}
JEPA |= {"tubelet_size": 2, "pred_hidden_size": 36, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 2}
EOMT = {**VISION, "num_queries": 3, "num_blocks": 2, "num_upscale_blocks": 1, "num_register_tokens": 2}
PRO = {f"{part}_model_config": {"model_type": "dinov2", **VISION} for part in ("image", "patch", "fov")}
WINDOWS = {**TINY, "image_size": 32, "pretrain_image_size": 32, "patch_size": 8, "num_windows": 4}
PACKED = {"depth": 2, "embed_dim": 32, "num_heads": 4, "hidden_size": 32, "patch_size": 8, "mlp_ratio": 2}
WORDS = {**TEXT, "num_key_value_heads": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
WORDS["rope_parameters"]["mrope_section"] = [2, 1, 1]
WORDS["rope_scaling"] = WORDS["rope_parameters"]  # its name in transformers 4.57


CONFORMER = {**TINY, "num_key_value_heads": 4, "subsampling_conv_channels": 32, "num_mel_bins": 16}


def one_row() -> Inputs:
    """Qwen2-VL: 4 x 4 patches of one image, merged to 4 tokens among the words."""
    ids = torch.tensor([[1, 18, 18, 18, 18, 3]])
    return {"pixel_values": torch.ones(16, 384), "image_grid_thw": torch.tensor([[1, 4, 4]]), "input_ids": ids} | {
        "mm_token_type_ids": (ids == 18).int()
    }


@dataclass(frozen=True)
class Refused:
    """One refused class: `what` describes it; `inputs` are given if only a forward shows it."""

    what: str
    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    inputs: Callable[[], Inputs] | None = None
    change: Callable[[nn.Module], None] | None = None

    @property
    def here(self) -> bool:
        """Whether the installed transformers has this class."""
        return self.name == TIMM or hasattr(transformers, self.name)

    def build(self) -> nn.Module:
        """The model in eval mode."""
        if self.name == TIMM:
            model: nn.Module = timm_like.TimmLikeViT(depth=DEPTH, width=32, image_size=SIZE, patch_size=8, labels=5)
        else:
            kind = getattr(transformers, self.name)
            model = kind(kind.config_class(**self.settings))
        if self.change is not None:
            self.change(model)
        return model.eval()

    def message(self) -> str:
        """What the ArchitectureError, or torch's error with a note, says.

        The model runs without prompts, and an error at once changes nothing.
        """
        model = self.build()
        keys, trainable = list(model.state_dict()), [p.requires_grad for p in model.parameters()]
        with torch.no_grad():
            if self.inputs is not None:
                model(**self.inputs())
                prompted = get_peft_model(model, GatedPromptConfig(num_virtual_tokens=5)).eval()
                with pytest.raises((ArchitectureError, RuntimeError)) as caught:
                    prompted(**self.inputs())
                assert isinstance(caught.value, ArchitectureError) or caught.value.__notes__
            else:
                with pytest.raises(ArchitectureError) as caught:
                    get_peft_model(model, GatedPromptConfig(num_virtual_tokens=5))
                assert (list(model.state_dict()), [p.requires_grad for p in model.parameters()]) == (keys, trainable)
        return " ".join([f"{caught.value}", *getattr(caught.value, "__notes__", ())])


TIMM = "timm's layout"


def in_attention(name: str, value: Any) -> Callable[[nn.Module], None]:
    """A change of timm's stand-in: its attentions get an attribute that timm's other models have."""

    def change(model: nn.Module) -> None:
        for block in model.blocks:
            setattr(block.attn, name, value)

    return change


def bias_outside(model: nn.Module) -> None:
    """A change of timm's stand-in: a query bias outside of qkv, and no module behind it, as in timm's older BEiT."""
    in_attention("q_bias", nn.Parameter(torch.zeros(32)))(model)
    for block in model.blocks:
        del block.attn.q_norm


REFUSED: list[Refused] = [
    Refused("windows and stages", "SwinForImageClassification", STAGES),
    Refused("windows and stages", "Swinv2ForImageClassification", STAGES),
    Refused("stages", "SegformerModel", {"depths": [2, 2, 2, 2]}),
    Refused("stages", "HieraModel", HIERA),
    Refused(
        "convolutions only",
        "ResNetForImageClassification",
        {"depths": [2, 2], "hidden_sizes": [8, 8], "embedding_size": 8},
    ),
    Refused("text", "BertModel", TEXT),
    Refused("text", "ElectraModel", TEXT | {"embedding_size": 16}),
    Refused("speech", "Wav2Vec2Model", TINY | SPEECH),
    Refused(
        "a language model behind a hierarchical vision tower",
        "Florence2ForConditionalGeneration",
        {"vision_config": DAVIT, "text_config": BYTES, "image_token_id": 59},
    ),
    Refused("two attentions in each block", "TimesformerModel", {**VISION, "num_frames": 2}),
    Refused("several vision towers", "DepthProModel", PRO),
    Refused("positions by the index of a token", "VJEPA2Model", JEPA),
    Refused(
        "position tables between the blocks",
        "YolosModel",
        {**VISION, "image_size": [SIZE, SIZE], "num_detection_tokens": 3},
    ),
    Refused(
        "windows folded into the batch",
        "LwDetrViTBackbone",
        {**WINDOWS, "window_block_indices": [0, 2], "out_indices": [1, 3]},
    ),
    Refused(
        "windows folded into the batch", "RfDetrDinov2Backbone", {**VISION, "num_windows": 2, "out_indices": [2, 4]}
    ),
    Refused(
        "a table of position biases in the attention",
        TIMM,
        change=in_attention("relative_position_bias_table", nn.Parameter(torch.zeros(52, 4))),
    ),
    Refused("a query bias outside of qkv", TIMM, change=bias_outside),
    Refused("causal attention", "Phi4MultimodalVisionModel", VISION),
    Refused("convolutions between tokens", "ParakeetEncoder", CONFORMER),
    Refused("position biases by a method", TIMM, change=in_attention("get_bias", lambda: torch.zeros(1, 4, 17, 17))),
    Refused("blocks on maps", "VitDetModel", VISION, images),
    Refused(
        "patches of all images in one row, without a batch",
        "Qwen2VLModel",
        {"vision_config": PACKED, "text_config": WORDS, "image_token_id": 18},
        one_row,
    ),
    Refused(
        "images packed into one sequence",
        "PixtralVisionModel",
        VISION,
        lambda: images() | {"image_sizes": torch.tensor([[SIZE, SIZE]] * 2)},
    ),
    Refused("queries added between the blocks", "EomtForUniversalSegmentation", EOMT, images),
]
