# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The command line: `gated-prompt train | probe | predict | serve | export | convert`, or `python -m gated_prompt`."""

import sys
from contextlib import suppress
from importlib import import_module

from ..command_line import CommandLine, mistakes_in_one_line
from ..finetune.layout import asks_for_masks, gives_masks

COMMANDS = {
    "train": "fine-tune on a folder, a table or a data set of images, and say what to use",
    "probe": "nearest neighbours and linear probes of every block of a frozen backbone",
    "predict": "classify new images with what `train` left, or export it to ONNX",
    "serve": "answer over HTTP with many adapters on one backbone",
    "export": "one ONNX graph for many adapters, with a program that runs it without PyTorch",
    "convert": "convert checkpoints of MAE, MoCo v3, DINO, timm and the paper's official code",
}

MASKS = {  # the counterparts for label maps
    "train": "gated_prompt.finetune.segmentation.command",
    "predict": "gated_prompt.finetune.segmentation.predict",
}


def main(argv: list[str] | None = None) -> None:
    """Run one command. `argv` None means the arguments of the process."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help"):
        lines = [f"  {name:10}{text}" for name, text in COMMANDS.items()]
        print("usage: gated-prompt COMMAND [options]", "", *lines, "", "COMMAND --help lists its options.", sep="\n")
        return
    if words[0] not in COMMANDS:
        sys.exit(f"error: unknown command {words[0]!r}. Choose from: {', '.join(COMMANDS)}.")
    with mistakes_in_one_line():
        if words[0] in ("serve", "convert") or not {"-h", "--help"} & set(words):
            check_options(words[0], words[1:])
        import_module("gated_prompt._public")
        if words[0] in MASKS and {"-h", "--help"} & set(words):
            show_help(words[0])
            sys.exit(0)
        status = import_module(module_of(words[0], words[1:])).main(words[1:])
    sys.exit(status if isinstance(status, int) else 0)


def show_help(command: str) -> None:
    """The options for images with classes, then those for images with label maps."""
    for title, module in ("", f"{__name__}.{command}"), ("With label maps (--problem segmentation):", MASKS[command]):
        print(title)
        with suppress(SystemExit):  # argparse ends the program after the help
            import_module(module).main(["--help"])


def check_options(command: str, words: list[str]) -> None:
    """Read the options once before torch and PEFT are imported, which takes seconds.

    Raises:
        GatedPromptError: one is unknown, or its value is wrong.
    """
    if command == "train" and asks_for_masks(words):
        from ..finetune.segmentation.arguments import parse as parse_masks

        parse_masks(words)
    elif command in ("train", "probe"):
        from ..finetune.arguments import parse

        parse(words)
    elif command == "predict" and gives_masks(words):
        from ..finetune.segmentation.arguments import MaskPredictArguments

        CommandLine([MaskPredictArguments]).parse(words)
    elif command == "predict":
        from ..finetune.arguments import PredictArguments

        CommandLine([PredictArguments]).parse(words)
    elif command == "export":
        from .export import ExportArguments

        CommandLine([ExportArguments]).parse(words)
    elif command == "serve":
        from .serve import parser as parser_of_serve

        parser_of_serve().parse(words)  # also shows the help, which needs nothing of the extra [serve]
    elif command == "convert":
        from .convert import parser

        parser().parse_args(words)


def module_of(command: str, words: list[str]) -> str:
    """Where a command lies. Of `train` and `predict` that depends on whether it is about classes or label maps."""
    if (command == "train" and asks_for_masks(words)) or (command == "predict" and gives_masks(words)):
        return MASKS[command]
    return f"{__name__}.{command}"
