# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Checks the words of the README, CONTRIBUTING and the pages with proselint and with this project's own vocabulary.

    python tools/prose.py [FILE ...]

Code, addresses and generated parts are left out. Any finding is an error. So are more than two semicolons in 1000
words of all pages, of all docstrings, of all comments, or of all messages: short sentences are easier to read.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

from proselint.checks import __register__ as standard
from proselint.config import DEFAULT, Config
from proselint.registry import CheckRegistry
from proselint.registry.checks import Check, types
from proselint.tools import LintFile

ROOT = Path(__file__).parents[1]
SOURCES = [file for folder in ("gated_prompt", "examples", "tools") for file in sorted((ROOT / folder).rglob("*.py"))]
MOST_SEMICOLONS = 2  # in 1000 words
WORDS_OF_A_MESSAGE = 4  # fewer are names, formats and signs
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES += [page for page in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in page.parts]

# Made-up terms and turns of phrase of translated text, and what a native writer says. Keys are regular expressions.
VOCABULARY = {
    r"whole or not at all": "atomically",
    r"never half": "atomically",
    r"a process and step": "per process and step",
    r"(?:stand|stands|standing|stood) aside": "is held separately",
    r"cannot be told|can not be told": "is unknown, or cannot be distinguished",
    r"(?:is|are) not foreseen": "is not supported",
    r"as (?:it|they) says?": "(leave it out)",
    r"what .{3,40} has more than": "what ... adds to",
    r"have no place|has no place": "cannot be used there",
    r"passed by": "bypassed",
    r"rightly": "correctly; this is expected",
    r"in (?:its|their) own words": "with ...'s message",
    r"made anew": "recreated",
    r"where there is one": "if there is one",
    r"by itself": "automatically, on its own, or alone",
    r"by themselves": "automatically, on their own, or alone",
    r"is right": "is expected, or is correct",
    r"takes? it back": "undoes it",
    r"taken? off": "unload",
    r"(?:go|goes|went) on": "continue",
    r"by (?:its|their) place": "by its index in the sequence",
    r"trained numbers|numbers are trained": "trainable parameters",
    r"(?:is|are) no (?:layer|model|file|size|config|pickle|number)s?(?: of)?": "is not a ...",
}
ACCEPTED = {"saliency"}  # the field's word
OFF = ("typography", "spelling", "dates_times")  # pages are ASCII. Both spellings of -ise. CIFAR-10's is no decade
LEFT_OUT = (
    re.compile(r"^(```|::::?).*?^\1:?", re.MULTILINE | re.DOTALL),  # code, cards
    re.compile(r"<!-- generated: .*?<!-- end -->", re.DOTALL),
    re.compile(r"<[^>]+>", re.DOTALL),
    re.compile(r"`[^`]+`"),
    re.compile(r"\]\([^)]+\)"),
    re.compile(r'"[^"\n]*\n?[^"\n]*"'),  # quoted
    re.compile(r"^\[\^\w+\]:.*$", re.MULTILINE),  # references
)


def prose(page: str) -> str:
    """The page with everything else written over, so that lines and columns stay where they are."""
    for pattern in LEFT_OUT:
        page = pattern.sub(lambda match: re.sub(r"\S", "#", match[0]), page)
    return page


def house_checks() -> tuple[Check, ...]:
    """The vocabulary as checks of proselint."""
    rules = types.PreferredForms(items=VOCABULARY)
    return (Check(check_type=rules, path="house", message="Write '{}' in place of '{}'."),)


def findings(files: list[Path]) -> list[str]:
    """One line for each finding."""
    registry = CheckRegistry()
    if not registry.checks:
        registry.register_many(standard)
        registry.register_many(house_checks())
    settings = Config(max_errors=1000, checks={"house": True, **DEFAULT["checks"], **dict.fromkeys(OFF, False)})
    found = []
    for file in files:
        page = LintFile(str(file), prose(file.read_text(encoding="utf-8")))
        for one in page.lint(settings):
            (line, column), result = one.pos, one.check_result
            words = page.content[slice(*result.span)]
            if words.strip().lower() in ACCEPTED or "\n\n" in words:
                continue  # a heading and the paragraph below may share a word
            found.append(f"{file}:{line}:{column}: {result.check_path}: {result.message}")
    return found


def docstrings(source: str) -> Iterator[str]:
    """Those of a module, its classes and functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield ast.get_docstring(node) or ""


def messages(source: str) -> Iterator[str]:
    """What a program says: every string of at least `WORDS_OF_A_MESSAGE` words that is not a docstring."""
    tree = ast.parse(source)
    seen = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):  # an f-string comes before its parts
        parts = node.values if isinstance(node, ast.JoinedStr) else [node] if id(node) not in seen else []
        seen.update(map(id, parts))
        text = "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in parts)
        if len(text.split()) >= WORDS_OF_A_MESSAGE:
            yield text


def comments(source: str) -> Iterator[str]:
    """Each comment of a module."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def semicolons(texts: Iterable[str]) -> float:
    """How many there are in 1000 words, without code and quotations."""
    found = words = 0
    for text in map(prose, texts):
        found += text.count(";")
        words += len(text.split())
    return 1000 * found / max(words, 1)


def too_many_semicolons() -> list[str]:
    """One line for each kind of text that has more than `MOST_SEMICOLONS`."""
    sources = [file.read_text(encoding="utf-8") for file in SOURCES]
    kinds = {
        "pages": (file.read_text(encoding="utf-8") for file in PAGES),
        "docstrings": (text for source in sources for text in docstrings(source)),
        "comments": (text for source in sources for text in comments(source)),
        "messages": (text for source in sources for text in messages(source)),
    }
    rates = {kind: semicolons(texts) for kind, texts in kinds.items()}
    return [
        f"{kind}: {rate:.1f} semicolons in 1000 words. Write short sentences, at most {MOST_SEMICOLONS}"
        for kind, rate in rates.items()
        if rate > MOST_SEMICOLONS
    ]


if __name__ == "__main__":
    lines = findings([Path(name) for name in sys.argv[1:]] or PAGES)
    lines += [] if sys.argv[1:] else too_many_semicolons()
    print("\n".join(lines) or f"{len(sys.argv[1:]) or len(PAGES)} pages, nothing found")
    sys.exit(bool(lines))
