# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""From an image to an answer: a file beside the weights, so that folder and backbone are enough.

An adapter's tensors know neither the names of their classes nor how images became pixels in training. Other pixels
than those of training give answers that look right and are not.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageClassification

from .errors import DamagedAdapterError, DataError, GatedPromptError
from .files.folder import replace_text
from .files.header import read_config, shown
from .heads import Reads, TokenClassifier, load_backbone
from .transforms import ResizeCenterCrop, ResizeSquare, Sampling

Problem = Literal["single_label", "multi_label", "regression"]
PROBLEM_TYPES: Mapping[Problem, str] = {  # transformers' names
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
OLD_PROBLEMS = {"classes": "single_label", "labels": "multi_label", "numbers": "regression"}  # in older files
FILE = "predictor.json"
LONGEST = 2**24  # bytes of the file: room for 100,000 names of classes
MOST_PIXELS = 4096  # a side. A file that asks for more is damaged or hostile
CROP, SQUARE = {"mean", "std", "resize", "crop"}, {"mean", "std", "size", "sampling", "round_to_bytes"}
OLD_SQUARE = {"mean", "std", "size", "antialias"}  # of files written before `sampling` existed. Pixels were bytes


@dataclass(frozen=True)
class Predictor:
    """The content of `predictor.json`, which tells how to classify with an adapter. Unknown fields in the file are
    ignored.

    Attributes:
        names: of the classes, labels or numbers, in the order of the logits.
        preparation: of images, the settings of a transform: mean, std, and either resize and crop
            (`ResizeCenterCrop`) or size, sampling and round_to_bytes (`ResizeSquare`). Sides are in pixels. Older
            files have antialias instead of the last two.
        problem: "single_label" (one class is correct), "multi_label" (any number of them) or "regression" (numbers).
        backbone: Hub id or name of the model that the adapter was trained on.
        base: settings of the backbone's config that differ from those published: num_hidden_layers, or none.
        reads: what the head reads, as `heads.TokenClassifier` calls it. None means what the head of the backbone's own
            class for image classification reads.
        blocks: after which the head reads, as `heads.TokenClassifier` calls them. None means the output of the
            backbone.
        temperature: divides the logits before they become probabilities, fitted to images that were not trained on.

    Raises:
        DataError: a value is not what it should be.

    Example:
        ```python
        from gated_prompt.predictor import Predictor

        preparation = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize": 256, "crop": 224}
        predictor = Predictor(["cat", "dog"], preparation)
        predictor.answer(torch.tensor([2.0, 1.0]), top=1)  # [("cat", 0.73)]
        ```
    """

    names: list[str]
    preparation: Mapping[str, Any]
    problem: Problem = "single_label"
    backbone: str | None = None
    base: Mapping[str, Any] = field(default_factory=dict)
    reads: Reads | None = None
    blocks: list[int] | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.names, list) or not self.names or not all(isinstance(n, str) for n in self.names):
            raise DataError(f"names is {shown(self.names)}. Expected a list of names, one for each logit.")
        if self.problem not in get_args(Problem):
            raise DataError(f"problem is {shown(self.problem)}. Choose from: {', '.join(get_args(Problem))}.")
        if not isinstance(self.backbone, str | None) or not _is_base(self.base):
            raise DataError(
                f"backbone is {shown(self.backbone)}, base is {shown(self.base)}. Expected text for the first, and "
                f"{{}} or a number of blocks as num_hidden_layers for the second."
            )
        if self.reads not in (None, *get_args(Reads)):
            raise DataError(f"reads is {shown(self.reads)}. Choose from: null, {', '.join(get_args(Reads))}.")
        if self.blocks is not None and (self.reads is None or not _are_blocks(self.blocks)):
            raise DataError(
                f"blocks is {shown(self.blocks)}. Expected null or, with `reads`, ascending numbers from 0."
            )
        if not _is_number(self.temperature) or self.temperature <= 0:
            raise DataError(f"temperature is {shown(self.temperature)}. Expected a number above 0.")
        fault = _fault_of(self.preparation)
        if fault:
            raise DataError(f"preparation {shown(self.preparation)} {fault}")

    def load_base(self, backbone: str | os.PathLike[str] | None = None, trust_remote_code: bool = False) -> Any:
        """Load the model that the adapter was trained on, in float32 and eval mode, with an untrained head.

        Args:
            backbone: Hub id or folder to load it from. None means the one used in training.
            trust_remote_code: run Python code that the backbone brings.

        Raises:
            GatedPromptError: it cannot be loaded, or its location is unknown.
        """
        source = os.fspath(backbone or self.backbone or "")
        if not source:
            raise GatedPromptError(f"{FILE} does not name the backbone. Name it: load_base('folder or Hub id').")
        if self.reads is not None:
            return self.with_head(load_backbone(source, trust_remote_code, **self.base))
        try:
            model: Any = AutoModelForImageClassification.from_pretrained(
                source,
                num_labels=len(self.names),
                ignore_mismatched_sizes=True,
                dtype="float32",
                trust_remote_code=trust_remote_code,
                **self.base,
            )
        except (OSError, ValueError) as error:
            raise GatedPromptError(
                f"cannot load the backbone {source!r} ({str(error).splitlines()[0]}). Give its folder or Hub id as "
                "backbone=..."
            ) from error
        return self._settled(model)

    def with_head(self, backbone: Any) -> Any:
        """A loaded backbone with an untrained head that reads it as `reads` and `blocks` say, in eval mode."""
        return self._settled(TokenClassifier(backbone, self.names, self.reads or "cls", self.blocks))

    def _settled(self, model: Any) -> Any:
        model.config.id2label = dict(enumerate(self.names))
        model.config.label2id = {name: index for index, name in enumerate(self.names)}
        model.config.problem_type = PROBLEM_TYPES[self.problem]
        return model.eval()

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """Return the function that turns an RGB image into float (3, height, width), as in evaluation."""
        if set(self.preparation) == CROP:
            return ResizeCenterCrop(**self.preparation, train=False)
        if set(self.preparation) == OLD_SQUARE:
            settings = dict(self.preparation)
            sampling: Sampling = "antialias" if settings.pop("antialias") else "half_pixel"
            return ResizeSquare(**settings, sampling=sampling, round_to_bytes=True)
        return ResizeSquare(**self.preparation)

    def answer(self, logits: Tensor, top: int) -> list[tuple[str, float]]:
        """Return names and scores of one image's logits (K,), at most `top` of them, the best first. Of numbers,
        all.
        """
        if self.problem == "regression":
            return list(zip(self.names, logits.tolist(), strict=True))
        logits = logits / self.temperature
        shares = logits.softmax(-1) if self.problem == "single_label" else logits.sigmoid()
        scores, places = shares.topk(min(top, len(self.names)))
        return [(self.names[place], score) for place, score in zip(places.tolist(), scores.tolist(), strict=True)]

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write `predictor.json` into an adapter's folder, atomically.

        Raises:
            GatedPromptError: the file would be longer than `read_predictor` reads, or a name is not valid Unicode.
        """
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:
            raise GatedPromptError(f"a name of {FILE} is not valid Unicode ({error.reason}). Rename it.") from None
        if size > LONGEST:
            raise GatedPromptError(
                f"{FILE} with {len(self.names)} names would have {size} bytes, more than {LONGEST}. Shorten the names."
            )
        replace_text(Path(folder, FILE), text)


def read_predictor(folder: str | os.PathLike[str]) -> Predictor:
    """Read what `Predictor.write` or `gated-prompt train` wrote beside an adapter.

    Raises:
        DamagedAdapterError: there is no such file, or its content is invalid.

    Example:
        ```python
        from gated_prompt.predictor import read_predictor

        print(read_predictor("runs/photos").names)  # ["cat", "dog"]
        ```
    """
    path = Path(folder, FILE)
    if not path.is_file():
        raise DamagedAdapterError(
            f"{path.parent} lacks {FILE}, which names its classes and says how images become pixels. Write it with "
            "gated_prompt.predictor.Predictor(names=[...], preparation={...}).write(folder)."
        )
    values = read_config(path, LONGEST)
    if isinstance(values.get("problem"), str):
        values["problem"] = OLD_PROBLEMS.get(values["problem"], values["problem"])
    known = {one.name for one in fields(Predictor)}
    try:
        return Predictor(**{name: value for name, value in values.items() if name in known})
    except (DataError, TypeError) as error:
        raise DamagedAdapterError(
            f"{path}: {str(error).removesuffix('.')}. Correct it, or train or download the adapter again."
        ) from error


def preparation_of(transform: Any) -> dict[str, Any]:
    """Return the settings of a `ResizeCenterCrop` or `ResizeSquare`, as a `Predictor` has them."""
    return {name: value for name, value in asdict(transform).items() if name != "train"}


def _fault_of(preparation: Mapping[str, Any]) -> str | None:
    if not isinstance(preparation, Mapping) or set(preparation) not in (CROP, SQUARE, OLD_SQUARE):
        return f"needs exactly {', '.join(sorted(CROP))} or {', '.join(sorted(SQUARE))}."
    for name in ("mean", "std"):
        values = preparation[name]
        if not isinstance(values, list | tuple) or len(values) != 3 or not all(map(_is_number, values)):
            return f"has {name}={shown(values)}. Expected three numbers."
    if 0 in preparation["std"]:
        return "has a std of 0, by which pixels would be divided."
    sampling, rounded = preparation.get("sampling", "tf1"), preparation.get("round_to_bytes", False)
    if sampling not in get_args(Sampling) or type(rounded) is not bool:
        known = ", ".join(get_args(Sampling))
        return (
            f"has sampling={shown(sampling)}, round_to_bytes={shown(rounded)}. Expected one of {known} for the first, "
            "true or false for the second."
        )
    return _fault_of_sides(preparation)


def _fault_of_sides(preparation: Mapping[str, Any]) -> str | None:
    sides = [preparation[name] for name in ("resize", "crop", "size") if name in preparation]
    if not all(type(side) is int and 0 < side <= MOST_PIXELS for side in sides):
        return f"has sides {sides}. Expected whole numbers from 1 to {MOST_PIXELS}."
    if len(sides) == 2 and sides[1] > sides[0]:
        return f"crops {sides[1]} pixels of {sides[0]}."
    return None


def _are_blocks(value: object) -> bool:
    known = isinstance(value, list) and bool(value) and all(type(block) is int and block >= 0 for block in value)
    return known and value == sorted(set(value))  # type: ignore[call-overload]


def _is_base(value: object) -> bool:
    """Nothing else goes to `from_pretrained`: a file that was downloaded could ask for code to be run."""
    counts = list(value.values()) if isinstance(value, Mapping) and set(value) <= {"num_hidden_layers"} else [0]
    return all(type(count) is int and count > 0 for count in counts)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
