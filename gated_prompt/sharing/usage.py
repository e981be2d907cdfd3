# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The lines of a model card that load base and adapter, and ask about an image, as they can be pasted."""

from collections.abc import Sequence
from typing import Any

import transformers
from torch import nn

from ..config import GatedPromptConfig
from ..heads import TokenClassifier
from .quoting import line, python

MOST_NAMES = 30  # that the code of a card repeats. More would hide it
# Upright, as `datasets` and the loaders of this package give a camera's photo to training.
PICTURE = 'ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")'


def usage(
    base: nn.Module, config: GatedPromptConfig, source: str, is_on_hub: bool, place: str, names: Sequence[str]
) -> str:
    """A block of Python.

    Args:
        base: the base model.
        config: of the adapter.
        source: where the base comes from.
        is_on_hub: whether that is the Hub.
        place: where the adapter will live.
        names: of the classes or values in the order of the logits. Empty: unknown.
    """
    inner = base.backbone if isinstance(base, TokenClassifier) else base
    cls = type(inner).__name__
    known = getattr(transformers, cls, None) is type(inner)
    count = int(getattr(getattr(base, "config", None), "num_labels", None) or 0)
    # The adapter brings its head: a base that was published with another one loses nothing.
    takes_count = inner is base and config.modules_to_save and count
    head = f", num_labels={count}, ignore_mismatched_sizes=True" if takes_count else ""
    made = f"{cls}.from_pretrained({python(source)}{head})"
    if isinstance(base, TokenClassifier):
        made = f'TokenClassifier({made}, {count}, reads="{base.reads}")'
    made += "" if is_on_hub else "  # your copy of it"
    if not known:
        made = f"...  # the {line(type(base).__name__)} that the prompts were trained on"
    code = ["", f"base = {made}"]
    code.append(f"model = PeftModel.from_pretrained(base, {python(place)}).eval()")
    imports = ["import gated_prompt  # without this line PEFT ends in KeyError: 'GATED_PROMPT'"]
    if known and inner is not base:
        imports.append("from gated_prompt.heads import TokenClassifier")
    classifies = inner is not base or cls.endswith("ForImageClassification")
    answer = _answer(base, names) if known and classifies else []
    if answer:
        imports += ["import torch", "from peft import PeftModel", "from PIL import Image, ImageOps"]
        imports.append(f"from transformers import AutoImageProcessor, {cls}")
        code += [
            "",
            *([f"names = {[str(name) for name in names]!r}"] if names else []),
            f"processor = AutoImageProcessor.from_pretrained({python(source)})",
            "# grey images of 16 bits need gated_prompt.images.decode(path)",
            f'pixels = processor({PICTURE}, return_tensors="pt")',
            "with torch.no_grad():",
            "    logits = model(**pixels).logits[0]",
            *answer,
        ]
    else:
        imports += ["from peft import PeftModel", *([f"from transformers import {cls}"] if known else [])]
    return "\n".join(["```python", *imports, *code, "```"])


def usage_by_predictor(source: str, is_on_hub: bool, place: str) -> str:
    """A block of Python for an adapter that has `predictor.json` beside it. Arguments as for `usage`."""
    own = "" if is_on_hub else f", backbone={python(source)}"
    code = [
        "import gated_prompt",
        "",
        f"classifier = gated_prompt.load_classifier({python(place)}{own})"
        + ("" if is_on_hub else "  # your copy of it"),
        'print(classifier("photo.jpg", top=3))  # classifier.model is the model, its config has id2label',
    ]
    return "\n".join(["```python", *code, "```"])


def _answer(base: nn.Module, names: Sequence[str]) -> list[str]:
    """What the logits of one image say, by the kind of problem as transformers decides it. Empty: nothing known."""
    config: Any = base.config
    problem = config.problem_type or ("regression" if config.num_labels == 1 else None)
    if problem == "regression":
        return ["print(dict(zip(names, logits.tolist())))" if names else "print(logits.tolist())"]
    if not 0 < len(names) <= MOST_NAMES:
        return []
    if problem == "multi_label_classification":
        return ["print([name for name, p in zip(names, logits.sigmoid()) if p > 0.5])"]
    return ["print(names[logits.argmax()])"]
