"""Sphinx builds these pages without the network: make docs, then open docs/_build/html/index.html."""

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from peft import PeftConfig

import gated_prompt

project = "gated_prompt"
author = "The gated_prompt authors"
copyright = "2026, " + author
version = release = gated_prompt.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"gated_prompt {version}"
html_logo = html_favicon = "images/logo.svg"
html_static_path, html_css_files = ["_static"], ["landing.css"]

# Pages link to each other and to headings as on GitHub; a link that leads nowhere is a warning, and so an error.
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

# Docstrings are plain text with code in single backticks.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False


def from_markdown(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Code fences and tables in docstrings become literal blocks, and `code`s may go on as words."""
    shown: list[str] = []
    fenced = table = False
    for line in lines:
        text = line.lstrip()
        indent = line[: len(line) - len(text)]
        fence, row = text.startswith("```"), text.startswith("|")
        if (fence and not fenced) or (row and not table and not fenced):
            shown += [indent + "::", ""]
        fenced, table = fenced != fence, row
        if not fence:
            shown.append("    " + line if fenced or row else re.sub(r"(`[^`]+`)(?=\w)", r"\1\\ ", line))
    lines[:] = shown


def list_settings(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Below the docstring of the config: each setting with its default and the help text that it carries."""
    if obj is not gated_prompt.GatedPromptConfig:
        return
    inherited = {field.name for field in dataclasses.fields(PeftConfig)}
    for field in dataclasses.fields(obj):
        if field.name not in inherited:
            lines += [f"`{field.name}` = `{field.default!r}`", f"   {field.metadata['help']}", ""]


def hide_inherited(app: Any, what: str, name: str, obj: Any, *others: Any) -> tuple[str, str] | None:
    """The signature of the config would begin with PEFT's own fields; the list below it says more."""
    return ("(**settings)", "") if obj is gated_prompt.GatedPromptConfig else None


def keep_outside_pages(app: Any, name: str, source: list[str]) -> None:
    """Markdown files outside this folder are no pages of the site; links to them lead to the files."""
    source[0] = re.sub(r"\]\((\.\./[^)#]+\.md)\)", r"](path:\1)", source[0])


def setup(app: Any) -> None:
    app.connect("autodoc-process-signature", hide_inherited)
    app.connect("autodoc-process-docstring", from_markdown, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", list_settings)
    app.connect("source-read", keep_outside_pages)
