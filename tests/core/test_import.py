"""Importing the package: what it registers, what it leaves alone."""

import ast
import configparser
import importlib
import importlib.util
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

import gated_prompt
from gated_prompt.registration import add_peft_type, register

DISTRIBUTIONS = {"PIL": "pillow", "pillow_heif": "pillow-heif", "sklearn": "scikit-learn"}


def test_the_method_is_registered_once() -> None:
    member = PeftType["GATED_PROMPT"]
    assert member in list(PeftType)
    assert PeftType("GATED_PROMPT") is member is PeftType.GATED_PROMPT
    assert member == "GATED_PROMPT"
    assert PEFT_TYPE_TO_CONFIG_MAPPING[member] is gated_prompt.GatedPromptConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[member] is gated_prompt.GatedPromptModel
    before = list(PeftType)
    assert add_peft_type("GATED_PROMPT") is member
    assert add_peft_type("LORA") is PeftType.LORA
    register(gated_prompt.GatedPromptConfig, gated_prompt.GatedPromptModel)
    assert list(PeftType) == before


@pytest.mark.parametrize("module", [m.name for m in pkgutil.walk_packages(gated_prompt.__path__, "gated_prompt.")])
def test_every_module_imports(module: str) -> None:
    if module.startswith("gated_prompt.serving.") and importlib.util.find_spec("fastapi") is None:
        pytest.skip("the server needs FastAPI, of the extra [serve]")
    importlib.import_module(module)


def test_nothing_optional_is_imported() -> None:
    code = (
        "import peft, sys; before = set(sys.modules); import gated_prompt; "
        "print([m for m in ('datasets', 'matplotlib', 'sklearn', 'torchmetrics', 'PIL', 'timm') "
        "if m in sys.modules and m not in before])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_setup_lists_what_is_imported() -> None:
    """What `import gated_prompt` needs is installed with it, and all else is in an extra."""
    code = "import sys, gated_prompt; print(*(m for m in sys.modules if m.partition('.')[0] == 'gated_prompt'))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    root = Path(gated_prompt.__file__).parents[1]
    always: set[str] = set()
    anywhere: set[str] = set()
    for file in root.glob("gated_prompt/**/*.py"):
        tree = ast.parse(file.read_text())
        names = re.sub(r"(/__init__)?\.py$", "", str(file.relative_to(root))).replace("/", ".")
        anywhere |= _imported(list(ast.walk(tree)))
        always |= _imported(tree.body) if names in run.stdout.split() else set()
    setup = configparser.ConfigParser()
    setup.read(root / "setup.cfg")
    listed = {name: _packages(text) for name, text in setup["options.extras_require"].items()}
    required = _packages(setup["options"]["install_requires"])
    own = set(sys.stdlib_module_names) | {"gated_prompt"}
    assert {DISTRIBUTIONS.get(name, name) for name in always - own} <= required
    assert {DISTRIBUTIONS.get(name, name) for name in anywhere - own} <= required.union(*listed.values())
    assert all("pillow" in listed[extra] for extra in ("data", "serve", "train"))  # gated_prompt.serving, .data
    application = {name for file in root.glob("gated_prompt/finetune/**/*.py") for name in _imports_at_the_top(file)}
    assert {DISTRIBUTIONS.get(name, name) for name in application - own} <= required | listed["train"]


def _imports_at_the_top(file: Path) -> set[str]:
    return _imported(ast.parse(file.read_text()).body)


def _imported(nodes: list[ast.AST] | list[ast.stmt]) -> set[str]:
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    found |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    return {name.partition(".")[0] for name in found}


def _packages(lines: str) -> set[str]:
    return set(re.findall(r"^[\w-]+", lines, re.MULTILINE))


def test_importing_adds_little_to_peft() -> None:
    """At most a fifth. Both times come from one process, and noise only adds: one calm try of three is enough."""
    code = (
        "from time import perf_counter as now; start = now(); import peft; middle = now(); import gated_prompt; "
        "print((now() - middle) / (middle - start))"
    )
    ratios = []
    for _ in range(3):
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        ratios.append(float(run.stdout))
        if ratios[-1] <= 0.2:
            return
    raise AssertionError(f"importing gated_prompt takes these parts of importing peft: {ratios}")


def test_public_names_and_types() -> None:
    assert set(gated_prompt.__all__) <= set(dir(gated_prompt))
    assert all(getattr(gated_prompt, name).__doc__ for name in gated_prompt.__all__)
    assert (Path(gated_prompt.__file__).parent / "py.typed").exists()
