# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What a segmentation run left, as a model."""

from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.utils import CONFIG_NAME
from safetensors.torch import load_file
from torch import nn

import gated_prompt

from ...errors import GatedPromptError
from ...segmentation.predictor import MaskPredictor
from ..trained import TENSORS, holds_prompts

HEAD = "classifier."


def load_segmenter(folder: Path, predictor: MaskPredictor) -> nn.Module:
    """The model of a folder's predictor with what was trained, in eval mode.

    Raises:
        GatedPromptError: the backbone cannot be loaded, or what was trained does not fit it.
    """
    base: Any = predictor.load_base()
    if holds_prompts(folder):
        return gated_prompt.load(base, folder).eval()
    if (folder / CONFIG_NAME).is_file():
        return PeftModel.from_pretrained(base, folder).eval()
    try:
        tensors = load_file(folder / TENSORS)
        own = {name for name in base.state_dict() if name.startswith(HEAD)}
        if not own <= tensors.keys():
            raise GatedPromptError(f"{folder / TENSORS} lacks {sorted(own - tensors.keys())[0]}; train again")
        base.load_state_dict({**base.state_dict(), **tensors})
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise GatedPromptError(f"{folder / TENSORS} does not fit {predictor.backbone!r}: {reason}") from error
    return base.eval()
