# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Classes and scores of new images, with the output of gated-prompt train.

    gated-prompt predict --images new_photos --adapters runs/images --output predictions.csv
    gated-prompt predict --images a.jpg b.jpg --adapters runs/birds runs/trees --output predictions.jsonl
    gated-prompt predict --adapters runs/images --export birds.onnx

`--adapters` takes output folders of `train` (then what the run said to use) or a folder in them. Adapters of
prompts that share a backbone see a batch of images in one pass. The file has a line for each image and adapter, with a
fingerprint of the weights; the same command resumes where it was stopped, and predicts again with an adapter that has
changed. An image that cannot be read gets a line that says why.
"""

import json
import os
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from ..command_line import CommandLine, mistakes_in_one_line
from ..errors import DataError, GatedPromptError
from ..finetune.onnx_file import export
from ..finetune.predict_options import Arguments
from ..finetune.predictions import PredictionFile, fingerprint
from ..finetune.scorers import Group, make_groups
from ..images import EXTENSIONS, decode
from ..predictor import Predictor, read_predictor
from ..training.quiet import quiet_loading


def main(argv: list[str] | None = None) -> None:
    """Run with these arguments; None: those of the command line."""
    (args,) = CommandLine([Arguments], __doc__).parse(argv)
    if not args.adapters or (not args.images and args.export is None):
        raise GatedPromptError("give --adapters, and --images or --export")
    if args.top < 1 or args.batch_size < 1:
        raise GatedPromptError("--top and --batch_size are at least 1")
    quiet_loading()
    found = {name: find_predictor(name, args.backbone) for name in dict.fromkeys(args.adapters)}
    groups = make_groups(found)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.export is not None:
        print(export(groups, Path(args.export)))
        return
    names = [file for name in args.images for file in find_pictures(name)]
    most = max(len(one.names) if one.problem == "numbers" else args.top for g in groups for one in g.members.values())
    output = PredictionFile(
        Path(args.output), most, {name: fingerprint(folder) for name, (folder, _) in found.items()}
    )
    kept = len(output.done)
    for group in groups:
        group.module.to(device)
        left = [name for name in names if any((name, label) not in output.done for label in group.members)]
        for begin in tqdm(range(0, len(left), args.batch_size), desc=", ".join(group.members)):
            output.add(predict(group, left[begin : begin + args.batch_size], args.top, device, output.done))
    used = len(args.adapters)
    print(f"{len(names)} images, {used} adapter{'s' if used > 1 else ''}, {kept} rows kept: {args.output}")


@torch.inference_mode()
def predict(
    group: Group, names: list[str], top: int, device: torch.device, done: set[tuple[str, str]]
) -> list[dict[str, object]]:
    """Rows of one batch, without those that are done."""
    transform = group.first.transform()
    pixels, errors = {}, {}
    for name in names:
        try:
            pixels[name] = transform(decode(Path(name), name))
        except DataError as error:
            errors[name] = str(error)
    logits = group.module(torch.stack(list(pixels.values())).to(device)).float().cpu() if pixels else torch.empty(0)
    rows: list[dict[str, object]] = []
    for place, (label, one) in enumerate(group.members.items()):
        for name in names:
            if (name, label) in done:
                continue
            row: dict[str, object] = {"image": name, "adapter": label}
            if name in errors:
                row["error"] = errors[name]
            else:
                best = one.answer(logits[list(pixels).index(name), place], top)
                row |= {"classes": [name for name, _ in best], "scores": [round(score, 6) for _, score in best]}
            rows.append(row)
    return rows


def find_predictor(name: str, backbone: str | None) -> tuple[Path, Predictor]:
    """The folder that an output folder's run said to use, or the folder itself, and its predictor.json."""
    folder = Path(name)
    if not folder.is_dir():
        raise GatedPromptError(f"--adapters: there is no folder {name!r}; give an output folder of gated-prompt train")
    if (folder / "settings.json").is_file() and not (folder / "results.json").is_file():
        raise GatedPromptError(
            f"--adapters: the run in {name!r} has not finished; repeat its gated-prompt train command to resume it"
        )
    if (folder / "results.json").is_file():
        folder /= json.loads((folder / "results.json").read_text())["use"]
    found = read_predictor(folder)
    return folder, found if backbone is None else replace(found, backbone=backbone)


def find_pictures(name: str) -> list[str]:
    """An image, or all below a folder that are not hidden."""
    if os.path.isfile(name):
        return [name]
    if not os.path.isdir(name):
        raise GatedPromptError(f"there is no image or folder {name!r}")
    found = []
    for place, inner, files in os.walk(name):
        inner[:] = sorted(one for one in inner if not one.startswith("."))
        own = [one for one in files if not one.startswith(".") and Path(one).suffix.lower() in EXTENSIONS]
        found += [os.path.join(place, one) for one in sorted(own)]
    return found


if __name__ == "__main__":
    with mistakes_in_one_line():
        main()
