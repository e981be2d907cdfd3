# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The command line of the scripts: one line for each option in `--help`, one line for a mistake."""

import sys
from argparse import SUPPRESS, Action, ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, NoReturn

from transformers import HfArgumentParser

from .errors import GatedPromptError

METAVARS = {int: "INT", float: "FLOAT", str: "TEXT"}


@contextmanager
def mistakes_in_one_line() -> Iterator[None]:
    """End the program with exit status 1 and the message alone where the `with` block raises a GatedPromptError."""
    try:
        yield
    except GatedPromptError as error:
        sys.exit(f"error: {error}")


class HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Keeps the lines of the description, and shows the defaults that the help text does not state itself."""

    def _get_help_string(self, action: Action) -> str:
        text, value = action.help or "", action.default
        if "default" in text or value is SUPPRESS or value in (None, []):
            return text
        shown = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        return f"{text} (default: {shown.replace('%', '%%')})"


class CommandLine(HfArgumentParser):
    """A parser for dataclasses, or for what `add_argument` adds. Options are written out in full.

    Raises:
        GatedPromptError: an option is unknown, or a value is not of its type.
    """

    def __init__(self, kinds: Iterable[type] = (), description: str | None = None) -> None:
        super().__init__(list(kinds), description=description, formatter_class=HelpFormatter, allow_abbrev=False)
        if kinds:
            self.usage = "%(prog)s [options]"
        for action in self._actions:
            _shorten(action)

    def parse(self, argv: list[str] | None) -> tuple[Any, ...]:
        """One object for each of the dataclasses; None: the arguments of the command line."""
        return tuple(self.parse_args_into_dataclasses(argv, look_for_args_file=False))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """argparse's, which all ways of parsing go through; here nothing may remain unknown."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            name = unknown[0].split("=")[0]
            known = [option for action in self._actions for option in action.option_strings]
            near = get_close_matches(name, known, n=1) or [option for option in known if option.startswith(name)]
            hint = f"did you mean {near[0]}?" if near else "--help lists all options"
            raise GatedPromptError(f"unknown option {unknown[0]!r}; {hint}")
        return parsed, unknown

    def error(self, message: str) -> NoReturn:
        raise GatedPromptError(f"{message}; --help lists all options")


def _shorten(action: Action) -> None:
    """Leave out of the help what says the same twice; `--with-hyphens` works as before."""
    action.option_strings = [option for option in action.option_strings if "-" not in option[2:]]
    if action.const is False:
        action.help, action.default = f"switch off --{action.dest}", SUPPRESS
    elif action.nargs == "?":
        action.metavar = "true|false"
    elif action.dest != "help":
        action.metavar = METAVARS.get(action.type)  # type: ignore[call-overload]
