# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""A backbone before it is loaded: whether it can be, what it expects of images, and which reports are expected."""

import logging
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from transformers import CONFIG_MAPPING, ImageProcessingMixin, PretrainedConfig
from transformers.utils.logging import disable_progress_bar

from .. import heads
from ..errors import GatedPromptError

SECONDS = 10  # for the Hub to answer
# A head is new where classes are, and dropped where only features are read. Nobody reads the pooler.
HEAD = re.compile(r"(^|\.)(classifier|cls_classifier|distillation_classifier|head|pooler\.dense)\.(weight|bias)$")
# Blocks that are left out are the last ones. MAE's decoder and BEiT's head serve pretraining alone.
LEFT_OUT = re.compile(r"(^|\.)(((layer|layers|blocks)\.\{?[1-9])|decoder\.|lm_head\.)")
ROW = re.compile(r"^(.+?) +\| (?:\x1b\[\d+m)?([A-Z]{3,})", re.MULTILINE)  # of the table that transformers 5 prints
LISTED = re.compile(r"'([\w.]+)'")
MISMATCH = re.compile(r"^- ([\w.]+): found shape", re.MULTILINE)


def check_backbone(backbone: str) -> None:
    """Look for a folder, then in the cache, then on the Hub.

    Raises:
        GatedPromptError: it is in none of them, or the Hub cannot be reached.
    """
    if Path(backbone).is_dir():
        return
    try:
        if isinstance(try_to_load_from_cache(backbone, "config.json"), str):
            return
        HfApi().model_info(backbone, timeout=SECONDS)
    except HFValidationError as error:
        raise _refusal(backbone, "there is no such folder, and no Hub id looks like that") from error
    except RepositoryNotFoundError as error:
        raise _refusal(backbone, "there is no such folder, and no such model on the Hub for you") from error
    except HfHubHTTPError:
        return  # the Hub is there and has a fault of its own. transformers tries again, and says what it meets
    except Exception as error:  # of the HTTP client, which is not the same in all versions of huggingface_hub
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise _refusal(backbone, f"there is no such folder, it is not in the cache, and the Hub: {why}") from error


def check_code(backbone: str, trust_remote_code: bool) -> None:
    """Refuse a backbone that cannot be loaded without Python code of its own, unless that is trusted. None is run.

    Raises:
        GatedPromptError: it brings code, or its config cannot be read.
    """
    try:
        values, _ = PretrainedConfig.get_config_dict(backbone)
    except (OSError, ValueError) as error:
        raise _refusal(backbone, str(error).splitlines()[0]) from error
    if "auto_map" in values and values.get("model_type") not in CONFIG_MAPPING and not trust_remote_code:
        raise GatedPromptError(
            f"the backbone {backbone!r} brings Python code of its own, which is not run. Read it, and give "
            "--trust_remote_code true if you trust it, or take another backbone."
        )


def load_backbone(backbone: str, trust_remote_code: bool = False, **settings: Any) -> Any:
    """`heads.load_backbone`, after `check_backbone` and `check_code`.

    Raises:
        GatedPromptError: it cannot be loaded.
    """
    check_backbone(backbone)
    check_code(backbone, trust_remote_code)
    return heads.load_backbone(backbone, trust_remote_code, **settings)


def _refusal(backbone: str, why: str) -> GatedPromptError:
    return GatedPromptError(
        f"cannot load --backbone {backbone!r}. Give a folder with a model or a Hub id that can be reached ({why})."
    )


@dataclass(frozen=True)
class ImageSettings:
    """How a backbone's images are prepared: `side` pixels, normalised by `mean` and `std`."""

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
            f"({str(error).splitlines()[0]}). Put one beside the model, as ViTImageProcessor.save_pretrained writes "
            "it."
        ) from error


def preparation(backbone: str, side: int | None = None) -> dict[str, Any]:
    """Settings of `ResizeCenterCrop` for a backbone: the short side to 8/7 of `side`, then a crop. Ready for JSON."""
    wanted = image_settings(backbone)
    side = side or wanted.side
    return {"mean": list(wanted.mean), "std": list(wanted.std), "resize": round(side * 256 / 224), "crop": side}


NO_NEWS = ("torchvision is not installed", "consider to run pre-processing before quantization")


def quiet_loading() -> None:
    """Drop reports on weights that are expected to differ, the bar of loading, and a warning that PEFT causes.

    And what torch's exporter says about torchvision, which nothing here needs, and onnxruntime about quantisation.
    """
    for name in ("transformers.modeling_utils", "torch.onnx._internal.exporter._registration", "root"):
        logging.getLogger(name).addFilter(is_news)
    disable_progress_bar()
    warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)


def is_news(record: logging.LogRecord) -> bool:
    """Whether a message is anything but a report in which every weight is as expected, or one of NO_NEWS."""
    text = record.getMessage()
    if "LOAD REPORT" in text:
        found = ROW.findall(text)
    elif "were not initialized from the model checkpoint" in text:  # transformers 4
        found = [(key, "MISSING") for key in LISTED.findall(text) + MISMATCH.findall(text)]
    elif "were not used when initializing" in text:
        found = [(key, "UNEXPECTED") for key in LISTED.findall(text)]
    else:
        return not any(words in text for words in NO_NEWS)
    return not found or not all(_expected(key, status) for key, status in found)


def _expected(key: str, status: str) -> bool:
    new = status in ("MISSING", "MISMATCH", "UNEXPECTED") and HEAD.search(key) is not None
    return new or (status == "UNEXPECTED" and LEFT_OUT.search(key) is not None)
