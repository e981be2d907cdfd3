# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What the pages name exists: commands and their options, links, pages; and the reference leaves nothing out."""

import importlib.util
import inspect
import io
import pkgutil
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from contextlib import redirect_stdout
from functools import partial
from itertools import takewhile

import pytest

import gated_prompt
import gated_prompt.convert
import gated_prompt.data
from gated_prompt import cli, plots
from gated_prompt.errors import REMOVED
from helpers.pages import PAGES, ROOT, blocks, pages

# Commands.


def commands() -> list[tuple[str, int, str]]:
    """Page, line and text of each command, in a block of its own or in a sentence."""
    found = []
    for name, path in PAGES.items():
        for line, text in blocks(name, "bash", "sh"):
            joined = text.replace("\\\n", " ")
            found += [(name, line, one) for one in joined.splitlines() if one.strip() and not one.startswith("#")]
        for line, text in enumerate(path.read_text().splitlines(), start=1):
            found += [(name, line, one) for one in re.findall(r"`((?:accelerate launch|python|make) [^`]+)`", text)]
    return found


def options_given() -> dict[str, set[str]]:
    """Options after each script of examples/ and each command of the package, on any page."""
    found: dict[str, set[str]] = {}
    for _, _, command in commands():
        words = shlex.split(command, comments=True)
        for start, word in enumerate(words):
            is_command = word in ("gated-prompt", "gated_prompt") and start + 1 < len(words)
            if is_command or (word.startswith("examples/") and word.endswith(".py")):
                depth = 3 if words[start + 1 : start + 2] == ["convert"] else 2  # convert has two commands below it
                name = " ".join(["gated-prompt", *words[start + 1 : start + depth]]) if is_command else word
                own = takewhile(lambda after: after != "--", words[start + 1 :])  # what follows is for another script
                options = {after.split("=")[0] for after in own if after.startswith("--")}
                found.setdefault(name, set()).update(options)
    return found


def help_of(script: str) -> str:
    """What --help prints."""
    if script.startswith("gated-prompt "):
        start = partial(cli.main, [*script.split()[1:], "--help"])
    else:
        start = partial(runpy.run_path, str(ROOT / script), run_name="__main__")
    with redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit) as left:
        start()
    assert left.value.code == 0
    return printed.getvalue()


@pytest.mark.parametrize(("script", "options"), options_given().items())
def test_options_of_scripts(script: str, options: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option that a page gives to a script is one that its --help lists."""
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    monkeypatch.setattr(sys, "path", [str((ROOT / script).parent), *sys.path])  # as Python does it for a script
    if "serving_load/load" in script:  # locust patches the standard library of the process that imports it
        if importlib.util.find_spec("locust") is None:
            pytest.skip("locust, of the extra [load], is needed for the load test")
        command = [sys.executable, "-m", "locust", "--help"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    else:
        shown = help_of(script)
    missing = {option for option in options if not re.search(rf"{re.escape(option)}(?![\w-])", shown)}
    assert not missing, f"{script} has no {', '.join(sorted(missing))}"


def test_scripts_and_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name, line, command in commands():
        words = shlex.split(command, comments=True)
        for word in words:
            if word.endswith(".py") or word.startswith(("examples/", "tests/")):
                assert (ROOT / word).exists(), f"{name}, line {line}: {word}"
        if words and words[0] == "make":
            assert words[1] in targets, f"{name}, line {line}: make {words[1]}"


# Links and the list of pages.


def slug(heading: str) -> str:
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pages
def test_links_lead_somewhere(name: str) -> None:
    page = PAGES[name]
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        linked = page if not path else page.parent / path
        assert linked.exists(), f"{name} links to {target}, which does not exist"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, f"{name}: no heading {anchor} in {path or name}"


DOCS = ROOT / "docs"


def listed(name: str) -> list[str]:
    """The pages in the toctrees of this page, from docs/ on."""
    trees = [text for _, text in blocks(name, "{toctree}")]
    folder = PAGES[name].parent
    lines = [line for text in trees for line in text.splitlines() if re.fullmatch(r"[\w/-]+", line)]
    return [str((folder / line).relative_to(DOCS)) for line in lines]


def test_every_page_is_listed_once() -> None:
    found = sorted(f"{page}.md" for name in PAGES for page in listed(name))
    below = (path.relative_to(DOCS) for name, path in PAGES.items() if name not in ("README.md", "index.md"))
    assert found == sorted(map(str, below))


def test_the_pages_are_few() -> None:
    """One page for each need. Generated tables and notes for contributors come on top, in folders of their own."""
    assert len(list(DOCS.glob("*.md"))) <= 24


def test_the_sidebar_fits_on_a_screen() -> None:
    assert len(listed("index.md")) <= 20


GENERATED = re.compile(r"<!-- generated: .*?<!-- end -->", re.DOTALL)


@pages
def test_no_page_is_too_long(name: str) -> None:
    limit = 130 if name == "README.md" else 200
    lines = GENERATED.sub("", PAGES[name].read_text()).count("\n")
    assert lines <= limit, f"{name} has {lines} lines without its generated tables; at most {limit}"


def test_the_design_notes_show_the_layers() -> None:
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    (shown,) = (text for _, text in blocks("design-notes.md", "text") if "__main__" in text)
    assert [re.split(" {2,}", line)[0] for line in shown.splitlines()] == contract["layers"]


def test_every_removed_name_is_explained() -> None:
    text = PAGES["upgrading.md"].read_text()
    missing = [name for name in REMOVED if f"`{name}(" not in text]
    assert not missing, f"docs/upgrading.md says nothing of {', '.join(missing)}"


# The reference.


def documented(name: str) -> set[str]:
    return set(re.findall(r"^\.\. auto\w+:: (\S+)", PAGES[name].read_text(), re.MULTILINE))


def test_the_reference_has_every_public_name() -> None:
    public = {f"gated_prompt.{name}" for name in gated_prompt.__all__}
    public |= {f"gated_prompt.plots.{name}" for name in plots.__all__}
    missing = public - documented("reference.md")
    assert not missing, f"add these to docs/reference.md: {', '.join(sorted(missing))}"
    for name in documented("reference.md") - {"gated_prompt.plots", "gated_prompt.convert"}:
        module, _, leaf = name.rpartition(".")
        assert getattr(importlib.import_module(module), leaf).__doc__, f"{name} has no docstring"


INSIDE = {
    "images",
    "hub",
    "vtab_hub",
    "vtab_hub_sources",
    "vtab_original",
    "vtab_original_arrays",
    "vtab_original_files",
    "vtab_splits",
    "vtab_tasks",
}
INSIDE |= {"fgvc_original"}  # modules whose public part another one gives on


def test_the_reference_has_every_module_of_the_data() -> None:
    modules = {module.name for module in pkgutil.iter_modules(gated_prompt.data.__path__)} - INSIDE
    beside = {"gated_prompt.images", "gated_prompt.transforms"}
    assert documented("data.md") == {f"gated_prompt.data.{module}" for module in modules} | beside
    for module in modules:
        for name, thing in vars(importlib.import_module(f"gated_prompt.data.{module}")).items():
            own = getattr(thing, "__module__", "").startswith("gated_prompt.data")
            if own and not name.startswith("_") and (inspect.isfunction(thing) or inspect.isclass(thing)):
                assert inspect.getdoc(thing), f"gated_prompt.data.{module}.{name} has no docstring"
