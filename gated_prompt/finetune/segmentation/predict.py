# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Label maps of new images, with the output of `gated-prompt train`.

    gated-prompt predict --images new_photos --adapters runs/street --output masks
    gated-prompt predict --images new_photos/1.jpg --adapters runs/street --export street.onnx

`--adapters` takes output folders of `train` (then what the run said to use) or a folder in them. For each image and
adapter there are masks/street/NAME.png, whose pixels are the classes and whose palette shows them, and
masks/street/NAME.overlay.jpg. The same command resumes where it was stopped, and predicts again with an adapter that
has changed. Adapters of prompts that share backbone and blocks see an image in one pass. An image that cannot be read
is named, and the others are predicted all the same.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ...command_line import CommandLine
from ...errors import DataError, GatedPromptError
from ...files.folder import replace_text
from ...images import EXTENSIONS, decode
from ...segmentation.colours import label_png, overlay
from ...segmentation.predictor import MaskPredictor, is_mask_predictor, read_mask_predictor, segmenter_of
from ...sharing.backbone import quiet_loading
from ...sharing.classifier import used_folder
from ..onnx_file import check_export, export_map
from ..predictions import Group, fingerprint, make_groups
from .arguments import MaskPredictArguments

CLASSES = "classes.json"  # names, colours, and the weights that the label maps come from


def main(argv: list[str] | None = None) -> int:
    """Run with these arguments. None means those of the command line. Return 1 if an image could not be read."""
    (args,) = CommandLine([MaskPredictArguments], __doc__).parse(argv)
    if not args.adapters or not args.images:
        raise GatedPromptError("give --adapters and --images")
    if args.export is not None:
        check_export(len(set(args.adapters)))
    quiet_loading()
    found = {name: find_mask_predictor(name, args.backbone) for name in dict.fromkeys(args.adapters)}
    pictures = find_images(args.images)
    groups = make_groups(found, args.trust_remote_code)
    if args.export is not None:
        first = decode(pictures[0][0], str(pictures[0][0]))
        print(export_map(groups[0], (first.height, first.width), Path(args.export)))
        return 0
    folders = labels_of(list(found))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    targets = {
        label: prepare(Path(args.output, folders[label]), one, fingerprint(folder))
        for label, (folder, one) in found.items()
    }
    failed: dict[str, str] = {}
    made = 0
    for group in groups:
        group.module.to(device)
        for file, name in tqdm(pictures, desc=", ".join(group.members)):
            missing = [label for label in group.members if not (targets[label] / f"{name}.png").is_file()]
            if not missing:
                continue
            try:
                image = decode(file, str(file))
            except DataError as error:
                failed[str(file)] = str(error)
                continue
            for label, labels in zip(group.members, label_maps(group, image), strict=True):
                if label in missing:
                    write(targets[label], name, image, labels, found[label][1], args.overlays)
                    made += 1
    for reason in failed.values():
        print(f"error: {reason}")
    print(f"{len(pictures)} images, {len(found)} adapter(s), {made} label maps written: {args.output}")
    return 1 if failed else 0


@torch.inference_mode()
def label_maps(group: Group[MaskPredictor], image: Image.Image) -> list[np.ndarray]:
    """The label map (H, W) uint8 of an image from each adapter of a group."""
    predictor, scorer = group.first, group.module

    def all_maps(pixels: Tensor) -> Any:
        """Logits (B, A x K, h, w): those of the first adapter, then those of the second, and so on."""
        return SimpleNamespace(logits=scorer(pixels).flatten(1, 2))

    device = next(scorer.parameters()).device
    pixels = predictor.pixels(image, segmenter_of(scorer.model).patch_size).to(device)
    scores = predictor.scores(all_maps, pixels, (image.height, image.width))
    return list(scores.unflatten(0, (len(group.members), -1)).argmax(1).byte().cpu().numpy())


def write(
    folder: Path, name: str, image: Image.Image, labels: np.ndarray, predictor: MaskPredictor, overlays: bool
) -> None:
    """Write the overlay, then the label map, each atomically. If there is a label map, both are complete."""
    target = folder / f"{name}.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{name}.partial"
    if overlays:
        overlay(image, labels, predictor.palette()).save(partial, "JPEG", quality=90)
        os.replace(partial, folder / f"{name}.overlay.jpg")
    partial.write_bytes(label_png(labels, predictor.palette()))
    os.replace(partial, target)


def prepare(folder: Path, predictor: MaskPredictor, weights: str) -> Path:
    """Make the folder of an adapter's label maps. Those of other weights are removed.

    Raises:
        GatedPromptError: it holds something else, or cannot be written.
    """
    about = folder / CLASSES
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not about.is_file():
            raise GatedPromptError(
                f"{folder} holds something other than label maps of an adapter. Give another --output."
            )
        if about.is_file() and json.loads(about.read_text(encoding="utf-8")).get("weights") != weights:
            for kind in ("*.png", "*.overlay.jpg"):
                for old in folder.rglob(kind):
                    old.unlink()
        colours = predictor.palette()[: len(predictor.names)].tolist()
        values = {"weights": weights, "classes": dict(zip(predictor.names, colours, strict=True))}
        replace_text(about, json.dumps(values, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise GatedPromptError(f"cannot write --output {folder}: {error.strerror}") from error
    return folder


def find_mask_predictor(name: str, backbone: str | None) -> tuple[Path, MaskPredictor]:
    """The folder that an output folder's run said to use, or the folder itself, and its predictor.json."""
    if not Path(name).is_dir():
        raise GatedPromptError(
            f"--adapters: there is no folder {name!r}. Give an output folder of gated-prompt train."
        )
    folder = used_folder(Path(name))
    if not is_mask_predictor(folder):
        raise GatedPromptError(f"--adapters: {name!r} classifies images. Predict with it in a separate call.")
    found = read_mask_predictor(folder)
    return folder, found if backbone is None else replace(found, backbone=backbone)


def labels_of(folders: Sequence[str]) -> dict[str, str]:
    """Return a file name for each folder: its last part, or its whole path if two have the same last part."""
    last = [Path(folder).resolve().name for folder in folders]
    return {
        folder: name if last.count(name) == 1 else "_".join(Path(folder).resolve().parts[1:])
        for folder, name in zip(folders, last, strict=True)
    }


def find_images(names: list[str]) -> list[tuple[Path, str]]:
    """Image files, and what each is called in the output: its path below the folder that was given, without ending.

    Raises:
        GatedPromptError: there is none, or two would have one name.
    """
    found: dict[str, Path] = {}
    for given in map(Path, names):
        files = [given] if given.is_file() else sorted(given.rglob("*"))
        if not given.exists():
            raise GatedPromptError(f"there is no image or folder {str(given)!r}")
        for file in files:
            below = Path(file.name) if file == given else file.relative_to(given)
            if any(part.startswith(".") for part in below.parts) or not file.is_file():
                continue
            if file != given and file.suffix.lower() not in EXTENSIONS:
                continue
            name = str(below.with_suffix(""))
            if found.setdefault(name, file) != file:
                raise GatedPromptError(
                    f"{found[name]} and {file} would both be written as {name}.png. Predict them in separate calls."
                )
    if not found:
        raise GatedPromptError(f"there are no images in {', '.join(names)}")
    return [(file, name) for name, file in found.items()]
