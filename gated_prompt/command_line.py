# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Command lines from dataclasses: one line for each option in `--help`, one line for a mistake.

Only the standard library is imported, so that a mistake is answered before anything heavy is loaded.
"""

import argparse
import errno
import io
import os
import sys
from argparse import SUPPRESS, Action
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields
from difflib import get_close_matches
from types import NoneType
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from .errors import GatedPromptError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Of safetensors, and of torch.save, whose writer does not say more.
FULL_DISK = ("No space left on device", "File too large", "Disk quota exceeded", "inline_container", "iostream error")
METAVARS = {int: "INT", float: "FLOAT", str: "TEXT"}
WORDS = {**dict.fromkeys(("true", "yes", "1"), True), **dict.fromkeys(("false", "no", "0"), False)}


@contextmanager
def mistakes_in_one_line() -> Iterator[None]:
    """End the program with exit status 1 and one line for a GatedPromptError, or for a disk that is full.

    Whatever names of files and classes hold can be printed in it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except GatedPromptError as error:
        sys.exit(f"error: {error}")
    except Exception as error:
        fault = next((one for one in _chain(error) if _is_full_disk(one)), None)
        if fault is None:
            raise
        where = getattr(fault, "filename", None)
        sys.exit(
            f"error: the disk is full{f', writing {where}' if where else ''} "
            f"({' '.join(str(fault).split())[:200]}). Free some space, then repeat the command, which continues from "
            "what was written before."
        )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_full_disk(error: BaseException) -> bool:
    """Whether an error of Python, of safetensors or of torch's writer says that nothing more can be written."""
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return True
    return any(sign in str(error) for sign in FULL_DISK)


def program() -> str | None:
    """Return the command's name for messages, such as "gated-prompt train". None leaves it to argparse."""
    name = sys.argv[0] if sys.argv else ""
    own = os.path.basename(name) == "gated-prompt" or name.endswith(os.path.join("gated_prompt", "__main__.py"))
    return " ".join(["gated-prompt", *sys.argv[1:2]]) if own else None


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the description, and shows the defaults that the help text does not state itself."""

    def _get_help_string(self, action: Action) -> str:
        text, value = action.help or "", action.default
        if "default" in text or value is SUPPRESS or value in (None, []):
            return text
        shown = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        return f"{text} (default: {shown.replace('%', '%%')})"


class CommandLine(argparse.ArgumentParser):
    """A parser for dataclasses, or for what `add_argument` adds. Options are written out in full.

    A field is an option of its name. Its metadata hold `help`, where only some values are known `choices`, and `old`,
    a mapping of former names of these. Its type is str, int, float, bool, or a list or tuple of these, or one of them
    or None. `_argument_group_name` of a dataclass heads its options in the help.

    Raises:
        GatedPromptError: an option is unknown, or a value is not of its type or none of the choices.
    """

    def __init__(self, kinds: Iterable[type] = (), description: str | None = None, prog: str | None = None) -> None:
        super().__init__(prog or program(), description=description, formatter_class=HelpFormatter, allow_abbrev=False)
        self.kinds = tuple(kinds)
        if self.kinds:
            self.usage = "%(prog)s [options]"
        for kind in self.kinds:
            title = getattr(kind, "_argument_group_name", None)
            group = self.add_argument_group(title) if title else self
            hints = get_type_hints(kind)
            for one in fields(kind):
                _add(group, one, hints[one.name])

    def parse(self, argv: list[str] | None) -> tuple[Any, ...]:
        """Return one object for each of the dataclasses. `argv` None means the arguments of the command line."""
        found = vars(self.parse_args(argv))
        return tuple(kind(**{one.name: found[one.name] for one in fields(kind)}) for kind in self.kinds)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """argparse's, which all ways of parsing go through. Here nothing may remain unknown."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            known = [name for action in self._actions if action.help != SUPPRESS for name in action.option_strings]
            raise GatedPromptError(unknown_option(unknown[0], known))
        return parsed, unknown

    def error(self, message: str) -> NoReturn:
        raise GatedPromptError(f"{message}. See --help for all options.")


def unknown_option(given: str, known: list[str], more: str = "See --help for all options.") -> str:
    """What to say of an option that does not exist. `more`: where nothing has a similar name."""
    name = given.split("=", maxsplit=1)[0]
    near = get_close_matches(name, known, n=1) or [option for option in known if option.startswith(name)]
    return f"unknown option {given!r}. {f'Did you mean {near[0]}?' if near else more}"


def _add(group: Any, one: Field[Any], hint: Any) -> None:
    """Add a field's option. `--with-hyphens`, and `--no_it` of what is on by default, are accepted but not listed."""
    kinds = [kind for kind in get_args(hint) if kind is not NoneType] if NoneType in get_args(hint) else [hint]
    kind: Any = kinds[0]
    more: dict[str, Any] = {}
    if get_origin(kind) in (list, tuple):
        kind, more = get_args(kind)[0], {"nargs": "+" if get_origin(kind) is list else len(get_args(kind))}
    default = one.default if one.default_factory is MISSING else one.default_factory()
    if default is MISSING:
        more["required"] = True
    else:
        more["default"] = list(default) if isinstance(default, tuple) else default
    if kind is bool:
        more |= {"nargs": "?", "const": True}
    action = group.add_argument(
        *dict.fromkeys((f"--{one.name}", f"--{one.name.replace('_', '-')}")),
        type=_truth if kind is bool else _renaming(one.metadata["old"]) if "old" in one.metadata else kind,
        choices=one.metadata.get("choices"),
        metavar="true|false" if kind is bool else None if "choices" in one.metadata else METAVARS.get(kind),
        help=one.metadata.get("help"),
        **more,
    )
    action.option_strings = action.option_strings[:1]
    if kind is bool and default is True:
        names = f"--no_{one.name}", f"--no-{one.name.replace('_', '-')}"
        group.add_argument(*names, dest=one.name, action="store_false", default=SUPPRESS, help=SUPPRESS)


def _renaming(old: Mapping[str, str]) -> Callable[[str], str]:
    return lambda text: old.get(text, text)


def _truth(text: str) -> bool:
    if text.lower() not in WORDS:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return WORDS[text.lower()]
