# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""More families as tiny random models: those that `test_families_more.py` runs through one independent comparison.

Like `families.py`, what a case says of its model is written down by hand.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn

from .families import LABELS, PIXELS, SIZE, TEXT, TINY, WIDTH, Inputs, captioned, images

VISION = {**TINY, **PIXELS}
LANGUAGE = {**TINY, "num_hidden_layers": 2, "num_key_value_heads": 4, "head_dim": 8, "vocab_size": 99}
LANGUAGE |= {"max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
IMAGE_TOKEN = 98


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def video(frames: int) -> Callable[[], Inputs]:
    return lambda: {"pixel_values": noise(2, frames, 3, SIZE, SIZE)}


def asked(image_tokens: int, *images: int, **more: torch.Tensor) -> Callable[[], Inputs]:
    """One image and a text with a place for each of its tokens, for a vision-language model."""
    ids = torch.tensor([[1, 5, *[IMAGE_TOKEN] * image_tokens, 6, 7]])
    return lambda: {"pixel_values": noise(1, *images, 3, SIZE, SIZE), "input_ids": ids} | more


@dataclass(frozen=True)
class More:
    """One class of one family.

    `settings`: of its config; `reads`: the output that is compared; `kind`: what the head is, in words; `head`: the
    modules that are trained beside the prompts.
    """

    family: str
    name: str
    settings: Callable[[], dict[str, Any]]
    prefix: int
    reads: str
    kind: str
    head: tuple[str, ...] = ()
    inputs: Callable[[], Inputs] = images

    @property
    def id(self) -> str:
        return self.name

    @property
    def here(self) -> bool:
        """Whether the installed transformers has this class."""
        return hasattr(transformers, self.name)

    def build(self) -> nn.Module:
        """The model in eval mode, the same weights every time."""
        torch.manual_seed(0)
        kind = getattr(transformers, self.name)
        model: nn.Module = kind(kind.config_class(**self.settings()))
        generator = torch.Generator().manual_seed(3)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        return model.eval()

    def run(self, model: nn.Module) -> torch.Tensor:
        """The output that is compared, of the case's own inputs."""
        output: torch.Tensor = model(**self.inputs())[self.reads]
        return output


def backbone(kind: str = "Dinov2Config", **more: Any) -> Any:
    return getattr(transformers, kind)(**VISION, **more)


def both(vision: str = "vision_config", text: str = "text_config", **more: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {vision: dict(VISION), text: dict(TEXT), "projection_dim": WIDTH, **more}


def chat(vision: dict[str, Any], text: dict[str, Any] | None = None, **more: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {
        "vision_config": vision,
        "text_config": {"model_type": "qwen2", **LANGUAGE, **(text or {})},
        **more,
    }


SIGLIP = {"model_type": "siglip_vision_model", **VISION}
LABELLED = {"num_labels": LABELS}
LM = {"reads": "logits", "kind": "the language model, frozen"}
DEPTH_MAPS = {"neck_hidden_sizes": [8] * 4, "fusion_hidden_size": 8, "reassemble_hidden_size": WIDTH}
MAPS = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}

MORE: list[More] = [
    More(
        "VideoMAE",
        "VideoMAEForVideoClassification",
        lambda: {**VISION, "num_frames": 4, "tubelet_size": 2, **LABELLED},
        0,
        "logits",
        "norm and linear on the mean of all tokens",
        ("fc_norm", "classifier"),
        video(4),
    ),
    More(
        "ViViT",
        "VivitForVideoClassification",
        lambda: {**TINY, "image_size": SIZE, "num_frames": 4, "tubelet_size": [2, 8, 8], **LABELLED},
        1,
        "logits",
        "linear on CLS",
        ("classifier",),
        video(4),
    ),
    More(
        "TimeSformer (joint attention)",
        "TimesformerForVideoClassification",
        lambda: {**VISION, "num_frames": 2, "attention_type": "joint_space_time", **LABELLED},
        1,
        "logits",
        "linear on CLS",
        ("classifier",),
        video(2),
    ),
    More(
        "AST (audio)",
        "ASTForAudioClassification",
        lambda: {
            **TINY,
            "patch_size": 8,
            "frequency_stride": 8,
            "time_stride": 8,
            "max_length": 32,
            "num_mel_bins": 16,
            **LABELLED,
        },
        2,
        "logits",
        "norm and linear on the mean of CLS and distillation token",
        ("classifier",),
        lambda: {"input_values": noise(2, 32, 16)},
    ),
    More(
        "ViTPose",
        "VitPoseForPoseEstimation",
        lambda: {
            "backbone_config": transformers.VitPoseBackboneConfig(
                **{**TINY, "image_size": [SIZE, SIZE], "patch_size": [8, 8]}, out_indices=[4]
            ),
            "num_labels": LABELS,
        },
        0,
        "heatmaps",
        "deconvolutions on patches",
        ("head",),
    ),
    More(
        "Depth Anything",
        "DepthAnythingForDepthEstimation",
        lambda: {
            "backbone_config": backbone(**MAPS, reshape_hidden_states=False),
            **DEPTH_MAPS,
            "patch_size": 8,
            "head_hidden_size": 8,
            "depth_estimation_type": "metric",
        },
        1,
        "predicted_depth",
        "convolutions on a neck that fuses four maps",
        ("head",),
    ),
    More(
        "ZoeDepth",
        "ZoeDepthForDepthEstimation",
        lambda: {
            "backbone_config": transformers.BeitConfig(
                **VISION, use_relative_position_bias=True, **MAPS, reshape_hidden_states=False
            ),
            **DEPTH_MAPS,
            "bottleneck_features": 8,
            "num_relative_features": 8,
            "bin_embedding_dim": 8,
            "patch_transformer_hidden_size": 8,
            "patch_transformer_intermediate_size": 16,
            "patch_transformer_num_attention_heads": 2,
        },
        1,
        "predicted_depth",
        "convolutions and metric bins on a neck that fuses four maps",
        ("relative_head", "metric_head"),
    ),
    More(
        "UperNet on DINOv2",
        "UperNetForSemanticSegmentation",
        lambda: {
            "backbone_config": backbone(**MAPS),
            "hidden_size": 16,
            "auxiliary_channels": 8,
            "auxiliary_in_channels": WIDTH,
            "pool_scales": [1, 2],
            **LABELLED,
        },
        1,
        "logits",
        "pyramid pooling on four maps",
        ("decode_head", "auxiliary_head"),
    ),
    More("BLIP", "BlipVisionModel", lambda: VISION, 1, "pooler_output", "none"),
    More("BLIP-2", "Blip2VisionModel", lambda: VISION, 1, "pooler_output", "none"),
    More(
        "ChineseCLIP",
        "ChineseCLIPModel",
        both(),
        1,
        "logits_per_image",
        "none: logits of image against text",
        (),
        captioned,
    ),
    More(
        "AltCLIP", "AltCLIPModel", both(), 1, "logits_per_image", "none: logits of image against text", (), captioned
    ),
    More("FLAVA", "FlavaImageModel", lambda: VISION, 1, "pooler_output", "none"),
    More(
        "OWL-ViT",
        "OwlViTForObjectDetection",
        both(),
        1,
        "pred_boxes",
        "boxes and classes of each patch, against text",
        ("class_head", "box_head", "layer_norm"),
        captioned,
    ),
    More(
        "MetaCLIP 2",
        "MetaClip2ForImageClassification",
        both(**LABELLED),
        1,
        "logits",
        "linear on the mean of patches",
        ("classifier",),
    ),
    More("AIMv2", "Aimv2VisionModel", lambda: VISION, 0, "pooler_output", "none: attention pool"),
    More("RADIO", "RadioModel", lambda: VISION, 10, "last_hidden_state", "none"),
    More("MLCD", "MLCDVisionModel", lambda: VISION, 1, "pooler_output", "none"),
    More("TIPSv2", "Tipsv2VisionModel", lambda: VISION, 2, "last_hidden_state", "none"),
    More(
        "LLaVA-OneVision",
        "LlavaOnevisionForConditionalGeneration",
        chat(SIGLIP, image_token_index=IMAGE_TOKEN, image_grid_pinpoints=[[SIZE, SIZE]]),
        0,
        inputs=asked(36, 2, image_sizes=torch.tensor([[SIZE, SIZE]])),
        **LM,
    ),
    More(
        "PaliGemma",
        "PaliGemmaForConditionalGeneration",
        chat(SIGLIP, {"model_type": "gemma"}, image_token_id=IMAGE_TOKEN, projection_dim=WIDTH),
        0,
        inputs=asked(16),
        **LM,
    ),
    More(
        "Gemma 3",
        "Gemma3ForConditionalGeneration",
        chat(SIGLIP, {"model_type": "gemma3_text"}, mm_tokens_per_image=4, image_token_index=IMAGE_TOKEN),
        0,
        inputs=asked(4),
        **LM,
    ),
    More(
        "Idefics 3",
        "Idefics3ForConditionalGeneration",
        chat({**VISION}, {"model_type": "llama"}, scale_factor=2, image_token_id=IMAGE_TOKEN),
        0,
        inputs=asked(4, 1),
        **LM,
    ),
    More(
        "SmolVLM",
        "SmolVLMForConditionalGeneration",
        chat({**VISION}, {"model_type": "llama"}, scale_factor=2, image_token_id=IMAGE_TOKEN),
        0,
        inputs=asked(4, 1),
        **LM,
    ),
    More(
        "InternVL",
        "InternVLForConditionalGeneration",
        chat({**TINY, "image_size": [SIZE, SIZE], "patch_size": [8, 8]}, image_token_id=IMAGE_TOKEN),
        1,
        inputs=asked(4),
        **LM,
    ),
]
