# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Command lines of train_images.py and predict.py: a misspelt option is an error message, not a traceback."""

from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from difflib import get_close_matches
from typing import Any

from transformers import HfArgumentParser

from gated_prompt import GatedPromptError


class HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Shows defaults and keeps the lines of the description."""


def parse_command_line(parser: HfArgumentParser, argv: list[str] | None) -> tuple[Any, ...]:
    """One object for each of the parser's dataclasses.

    Raises:
        GatedPromptError: an option is unknown.
    """
    *parsed, unknown = parser.parse_args_into_dataclasses(
        argv, return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings]
        near = get_close_matches(unknown[0].split("=")[0], known, n=1)
        hint = f"did you mean {near[0]}?" if near else "--help lists all options"
        raise GatedPromptError(f"unknown option {unknown[0]!r}; {hint}")
    return tuple(parsed)
