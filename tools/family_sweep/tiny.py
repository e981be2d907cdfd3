# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Every vision class of the installed transformers as a tiny random model, with inputs that it accepts."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from torch import nn

SIZE, PATCH = 32, 8
IMAGE_TOKEN = 98
Inputs = dict[str, Any]

# Values of settings by their name, wherever in a config they stand. The kind of the default (a list, say) is kept.
TINY: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "embed_dim", "projection_dim", "hidden_dim", "out_hidden_size"), 32),
    **dict.fromkeys(("projection_size", "decoder_hidden_size", "text_embed_dim", "vision_output_dim"), 32),
    **dict.fromkeys(("encoder_hidden_size", "pred_hidden_size", "qformer_hidden_size", "vision_feature_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "depth"), 4),
    **dict.fromkeys(("num_layers", "encoder_layers", "decoder_layers", "decoder_num_hidden_layers"), 2),
    **dict.fromkeys(("pred_num_hidden_layers", "num_decoder_layers", "num_encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "num_key_value_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "decoder_num_attention_heads", "pred_num_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "mlp_dim", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim"), 64),
    **dict.fromkeys(("decoder_intermediate_size", "intermediate_dim"), 64),
    **dict.fromkeys(("image_size", "pretrain_image_size", "crop_size"), SIZE),
    "head_dim": 8,
    "patch_size": PATCH,
    "encoder_stride": PATCH,
    "num_frames": 4,
    "frames_per_clip": 4,
    "tubelet_size": 2,
    "vocab_size": 99,
    "max_position_embeddings": 64,
    "num_queries": 5,
    "num_labels": 5,
    "num_register_tokens": 2,
    **dict.fromkeys(("bos_token_id", "decoder_start_token_id"), 1),
    **dict.fromkeys(("eos_token_id", "pad_token_id"), 2),
    **dict.fromkeys(("image_token_id", "image_token_index"), IMAGE_TOKEN),
}
DERIVED = ("out_features", "out_indices", "stage_names", "layer_types", "mlp_layer_types", "per_layer_config")
OTHER_VALUES: dict[str, dict[str, Any]] = {  # where a class needs another value, by the start of its name
    "Siglip2": {"num_patches": 16},
    "ASTFor": {"frequency_stride": 8, "time_stride": 8, "max_length": 32, "num_mel_bins": 16},
    "ASTModel": {"frequency_stride": 8, "time_stride": 8, "max_length": 32, "num_mel_bins": 16},
    "Vivit": {"tubelet_size": [2, 8, 8]},
    "Timesformer": {"attention_type": "joint_space_time"},
    "BeitFor": {"use_relative_position_bias": True, "use_mask_token": True},
    "BeitForSemantic": {"out_indices": [1, 2, 3, 4], "pool_scales": [1, 2]},
    "BeitModel": {"use_relative_position_bias": True},
    "Data2VecVisionForSemantic": {"out_indices": [1, 2, 3, 4], "pool_scales": [1, 2]},
}


def names() -> list[str]:
    """The names of all classes of transformers whose forward takes pixels, and that can be made from a config."""
    found = []
    for name in dir(transformers):
        if name.startswith(("TF", "Flax", "Auto")) or name.endswith(("PreTrainedModel", "Processor", "Config")):
            continue
        try:
            kind = getattr(transformers, name)
        except (AttributeError, ImportError):  # it needs a library that is not installed
            continue
        if not (inspect.isclass(kind) and issubclass(kind, transformers.PreTrainedModel)):
            continue
        inputs = inspect.signature(kind.forward).parameters
        if kind.config_class is not None and any("pixel" in i or i == "input_values" for i in inputs):
            found.append(name)
    return found


def family(name: str) -> str:
    """The folder of transformers that a class is defined in."""
    return str(getattr(transformers, name).__module__.split(".")[2])


def build(name: str) -> nn.Module:
    """The class in eval mode, the same random weights every time. Biases and position embeddings are not zero."""
    kind = getattr(transformers, name)
    changed = {k: v for start, values in OTHER_VALUES.items() if name.startswith(start) for k, v in values.items()}
    config = kind.config_class.from_dict(_shrunk(kind.config_class().to_dict(), TINY | changed))
    torch.manual_seed(0)
    model: nn.Module = kind(config)
    return varied(model)


def varied(model: nn.Module) -> nn.Module:
    """Move every parameter away from its initial value, which hides what zero biases or tables would do."""
    noise = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=noise, dtype=parameter.dtype)
    return model.eval()


def _shrunk(values: dict[str, Any], tiny: dict[str, Any]) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for key, value in values.items():
        if key in DERIVED and key not in tiny:  # follows from the default depth
            continue
        if isinstance(value, dict):
            changed[key] = _shrunk(value, tiny)
        elif key in tiny and isinstance(value, (list, tuple)) and not isinstance(tiny[key], list):
            changed[key] = [tiny[key]] * len(value)
        elif key in tiny and value is not None:
            changed[key] = tiny[key]
        else:
            changed[key] = value
    return changed


def candidates(model: nn.Module) -> Iterator[tuple[str, Callable[[], Inputs]]]:
    """Inputs of two images that a class may accept, by a name, the simplest first."""
    pixels, side = _noise(2, 3, SIZE, SIZE), SIZE // PATCH
    text = torch.tensor([[1, 5, 6, 7, 2], [1, 9, 3, 4, 2]])
    takes = inspect.signature(model.forward).parameters
    texts = {"input_ids": text, "attention_mask": torch.ones_like(text)}
    mask = torch.zeros(2, side * side, dtype=torch.bool)
    mask[:, ::3] = True
    yield "images", lambda: {"pixel_values": pixels}
    yield "images and texts", lambda: {"pixel_values": pixels, **texts}
    yield "images, some patches masked", lambda: {"pixel_values": pixels, "bool_masked_pos": mask}
    yield "videos", lambda: {"pixel_values": _noise(2, 4, 3, SIZE, SIZE)}
    yield "videos", lambda: {"pixel_values_videos": _noise(2, 4, 3, SIZE, SIZE)}
    yield "spectrograms", lambda: {"input_values": _noise(2, 32, 16)}
    if "spatial_shapes" in takes or "pixel_attention_mask" in takes:
        shapes = torch.tensor([[side, side], [side - 1, 3]])
        kept = torch.arange(side * side)[None] < shapes.prod(1, keepdim=True)
        rows = {
            "pixel_values": _noise(2, side * side, 3 * PATCH**2),
            "pixel_attention_mask": kept.int(),
            "spatial_shapes": shapes,
        }
        yield "patches, some padded", lambda: rows
        yield "patches and texts", lambda: rows | texts
    for count in (16, 4, 17, 1, 36):
        ids = torch.tensor([[1, 5, *[IMAGE_TOKEN] * count, 6, 7]] * 2)
        yield "images in a conversation", lambda ids=ids: {"pixel_values": pixels, "input_ids": ids}
        yield "images in a conversation", lambda ids=ids: {"pixel_values": pixels[:, None], "input_ids": ids}
    yield "images and prompts of a decoder", lambda: {"pixel_values": pixels, "decoder_input_ids": text}
    yield "pairs of images", lambda: {"pixel_values": _noise(2, 2, 3, SIZE, SIZE)}


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))
