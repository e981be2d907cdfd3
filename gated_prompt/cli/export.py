# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Export a backbone as one ONNX graph that takes adapters as inputs, with a program that runs without PyTorch.

    gated-prompt export --engine engine --backbone facebook/dinov2-small --adapters runs/birds runs/cars
    gated-prompt export --engine engine --add runs/trees
    python engine/run.py photos/*.jpg --adapters birds trees

Adapters of one structure share an engine. `--add` writes the file of one more adapter and leaves the graph alone.
"""

from dataclasses import dataclass, field
from pathlib import Path

from ..command_line import CommandLine, mistakes_in_one_line
from ..errors import GatedPromptError
from ..shipped import BACKBONE_HELP, SHIPPED_BACKBONE


@dataclass
class ExportArguments:
    """Which backbone and adapters to export, and where."""

    engine: str = field(default="", metadata={"help": "folder to write (required)"})
    backbone: str = field(default=str(SHIPPED_BACKBONE), metadata={"help": BACKBONE_HELP})
    adapters: list[str] = field(
        default_factory=list,
        metadata={
            "help": "output folders of train, or folders with predictor.json. Each task is named after its folder"
        },
    )
    add: list[str] = field(default_factory=list, metadata={"help": "add these adapters to the engine instead"})
    images: list[str] = field(
        default_factory=list, metadata={"help": "images, and folders of images, on which the graph is compared"}
    )
    int8: bool = field(
        default=False, metadata={"help": "quantise the backbone to 8 bits, if nearly all answers stay the same"}
    )


LEFT_BY_TRAIN = ("probe", "adapter")  # every run has these folders, so they would not name a task


def main(argv: list[str] | None = None) -> None:
    """Run with these arguments. None means those of the command line."""
    (args,) = CommandLine([ExportArguments], __doc__).parse(argv)
    if not args.engine or bool(args.adapters) == bool(args.add):
        raise GatedPromptError("give --engine, and --adapters or --add")
    from ..engine.export import add_adapter, export_engine
    from ..images import decode
    from ..sharing.backbone import quiet_loading
    from ..sharing.classifier import used_folder
    from .predict import find_all_pictures

    def by_name(names: list[str]) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for name in names:
            folder = Path(name)
            if not folder.is_dir():
                raise GatedPromptError(f"there is no folder {name!r}. Give an output folder of gated-prompt train.")
            whole = folder.resolve()
            label = whole.parent.name if whole.name in LEFT_BY_TRAIN else whole.name
            if label in found:
                raise GatedPromptError(f"two adapters are named {label!r} after their folders. Rename one folder.")
            found[label] = used_folder(folder)
        return found

    quiet_loading()
    if args.add:
        for label, folder in by_name(args.add).items():
            print(f"added: {add_adapter(args.engine, label, folder)}")
        return
    images = [decode(path) for path in find_all_pictures(args.images).values()] if args.images else []
    for line in export_engine(args.engine, args.backbone, by_name(args.adapters), images, args.int8):
        print(line)


if __name__ == "__main__":
    with mistakes_in_one_line():
        main()
