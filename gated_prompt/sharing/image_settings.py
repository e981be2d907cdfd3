# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The size and normalisation that a backbone expects of its images."""

from dataclasses import dataclass

from transformers import ImageProcessingMixin

from ..errors import GatedPromptError
from .backbone import check_backbone


@dataclass(frozen=True)
class ImageSettings:
    """How a backbone wants its images: `side` pixels, normalised by `mean` and `std`."""

    side: int
    mean: list[float]
    std: list[float]


def image_settings(backbone: str) -> ImageSettings:
    """Read a backbone's `preprocessor_config.json`.

    Without making an image processor of it: for that transformers 5.9 wants torchvision.

    Raises:
        GatedPromptError: there is no such file, or it lacks one of the three.
    """
    check_backbone(backbone)
    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(backbone)
        size = settings.get("crop_size") or settings["size"]
        side = size if isinstance(size, int) else size.get("height") or size["shortest_edge"]
        return ImageSettings(int(side), settings["image_mean"], settings["image_std"])
    except (OSError, KeyError) as error:
        raise GatedPromptError(
            f"cannot read size, image_mean and image_std from the preprocessor_config.json of {backbone!r} "
            f"({str(error).splitlines()[0]}); put one beside the model, as ViTImageProcessor.save_pretrained writes it"
        ) from error
