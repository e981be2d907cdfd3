"""Sphinx builds these pages without the network: make docs, then open docs/_build/html/index.html."""

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from docutils import nodes
from peft import PeftConfig
from sphinx.transforms import SphinxTransform

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


class PairPictures(SphinxTransform):
    """Where a page shows NAME_light.svg, readers of the dark site see NAME_dark.svg."""

    default_priority = 100  # before the pictures of a page are collected, so that both are copied

    def apply(self, **settings: Any) -> None:
        for picture in list(self.document.findall(nodes.image)):
            if picture["uri"].endswith("_light.svg"):
                dark = picture.deepcopy()
                dark["uri"] = picture["uri"].replace("_light.svg", "_dark.svg")
                picture["classes"].append("only-light")
                dark["classes"].append("only-dark")
                picture.parent.insert(picture.parent.index(picture) + 1, dark)


def setup(app: Any) -> None:
    app.connect("autodoc-process-signature", hide_inherited)
    app.connect("autodoc-process-docstring", from_markdown, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", list_settings)
    app.connect("source-read", keep_outside_pages)
    app.add_transform(PairPictures)
