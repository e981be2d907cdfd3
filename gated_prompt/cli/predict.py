# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Classes and scores of new images, with the output of gated-prompt train.

    gated-prompt predict --images new_photos --adapters runs/images --output predictions.csv
    gated-prompt predict --images a.jpg b.jpg --adapters runs/birds runs/trees --output predictions.jsonl
    gated-prompt predict --adapters runs/images --export birds.onnx

`--adapters` takes output folders of `train` (then what the run said to use) or a folder in them. Adapters of
prompts that share a backbone see a batch of images in one pass. The file has a row for each image and adapter, with
fingerprints of the image's content and of the weights; --unlike adds how far the image is from all that the probe was
fitted to. The same command resumes where it was stopped, and adds rows
for images that were replaced or repaired and for adapters that have changed: the last row of an image counts. An image
that cannot be read gets a row that says why.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from ..command_line import CommandLine, mistakes_in_one_line
from ..errors import DataError, GatedPromptError
from ..finetune.arguments import PredictArguments
from ..finetune.folder import walk
from ..finetune.onnx_file import check_export, export
from ..finetune.predictions import Group, PredictionFile, content_of, fingerprint, make_groups
from ..finetune.sources import say
from ..images import EXTENSIONS, decode, shown_path
from ..predictor import Predictor, read_predictor
from ..sharing.backbone import quiet_loading
from ..sharing.classifier import used_folder


def main(argv: list[str] | None = None) -> None:
    """Run with these arguments. None means those of the command line."""
    (args,) = CommandLine([PredictArguments], __doc__).parse(argv)
    if not args.adapters or (not args.images and args.export is None):
        raise GatedPromptError("give --adapters, and --images or --export")
    if args.top < 1 or args.batch_size < 1:
        raise GatedPromptError("--top and --batch_size are at least 1")
    if args.export is not None:
        check_export(len(set(args.adapters)))
    quiet_loading()
    found = {shown_path(name): find_predictor(name, args.backbone) for name in args.adapters}
    groups = make_groups(found, args.trust_remote_code, args.unlike)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.export is not None:
        print(export(groups[0], Path(args.export)))
        return
    pictures = find_all_pictures(args.images)
    most = max(
        len(one.names) if one.problem == "regression" else args.top for g in groups for one in g.members.values()
    )
    weights = {name: fingerprint(folder) for name, (folder, _) in found.items()}
    output = PredictionFile(Path(args.output), most, weights, args.unlike)
    contents = {name: content_of(pictures[name]) for name in pictures if name in output.images}
    kept = sum(output.has(name, label, contents[name]) for name in contents for label in found)
    for group in groups:
        group.module.to(device)
        left = [
            name
            for name in pictures
            if name not in contents or not all(output.has(name, label, contents[name]) for label in group.members)
        ]
        for begin in tqdm(range(0, len(left), args.batch_size), desc=", ".join(group.members)):
            batch = {name: pictures[name] for name in left[begin : begin + args.batch_size]}
            output.add(predict(group, batch, args.top, device, output))
    used = len(found)
    print(f"{len(pictures)} images, {used} adapter{'s' if used > 1 else ''}, {kept} rows kept: {args.output}")


@torch.inference_mode()
def predict(
    group: Group[Predictor], pictures: Mapping[str, Path], top: int, device: torch.device, output: PredictionFile
) -> list[dict[str, object]]:
    """Rows of one batch, without those that `output` has."""
    transform = group.first.transform()
    pixels, errors, contents = {}, {}, {}
    for name, path in pictures.items():
        contents[name] = content_of(path)
        try:
            pixels[name] = transform(decode(path, name))
        except DataError as error:
            errors[name] = str(error)
    logits = unlike = torch.empty(0)
    if pixels and group.familiar is None:
        logits = group.module(torch.stack(list(pixels.values())).to(device)).float().cpu()
    elif pixels and group.familiar is not None:
        logits, features = group.module.with_features(torch.stack(list(pixels.values())).to(device))
        logits, unlike = logits.float().cpu(), group.familiar.unlike(features.cpu())
    places = {name: place for place, name in enumerate(pixels)}
    rows: list[dict[str, object]] = []
    for column, (label, one) in enumerate(group.members.items()):
        for name in pictures:
            if output.has(name, label, contents[name]):
                continue
            row: dict[str, object] = {"image": name, "content": contents[name], "adapter": label}
            if name in errors:
                row["error"] = errors[name]
            else:
                best = one.answer(logits[places[name], column], top)
                digits = (
                    6 if one.problem == "regression" else 5
                )  # further digits of a share change with the batch size
                row |= {"classes": [name for name, _ in best], "scores": [round(score, digits) for _, score in best]}
                if group.familiar is not None:
                    row["unlike"] = round(float(unlike[places[name]]), 4)
            rows.append(row)
    return rows


def find_predictor(name: str, backbone: str | None) -> tuple[Path, Predictor]:
    """The folder that an output folder's run said to use, or the folder itself, and its predictor.json."""
    folder = Path(name)
    if not folder.is_dir():
        raise GatedPromptError(
            f"--adapters: there is no folder {shown_path(name)!r}. Give an output folder of gated-prompt train."
        )
    folder = used_folder(folder)
    found = read_predictor(folder)
    return folder, found if backbone is None else replace(found, backbone=backbone)


def find_all_pictures(names: Sequence[str]) -> dict[str, Path]:
    """Images and those below folders, by names that can be stored. What is not taken is named on the console.

    Raises:
        GatedPromptError: there is no such image or folder, or none holds an image.
    """
    found: dict[str, Path] = {}
    left_out = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            files = walk(path)
            found |= {shown_path(file): file for file in files if file.suffix.lower() in EXTENSIONS}
            left_out += [shown_path(file) for file in files if file.suffix.lower() not in EXTENSIONS]
        elif path.is_file():
            found[shown_path(path)] = path
        else:
            raise GatedPromptError(f"there is no image or folder {shown_path(name)!r}")
    say("left out", [f"{name}: the name is not that of an image" for name in left_out])
    if not found:
        raise GatedPromptError(f"--images: there are no images in {', '.join(map(shown_path, names))}")
    return found


if __name__ == "__main__":
    with mistakes_in_one_line():
        main()
