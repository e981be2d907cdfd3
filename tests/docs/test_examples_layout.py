"""How examples/ is built: scripts at the top, packages below, one direction of imports."""

import ast
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = {path.stem for path in EXAMPLES.glob("*.py")}
PACKAGES = {path.parent.name for path in EXAMPLES.glob("*/__init__.py")}
LAUNCHERS = {  # start what is launched inside a package; a script cannot import relatively
    *("demo/app.py", "demo/task_images.py", "serving_load/measure_server.py", "speed/compare.py"),
    *("study/run.py", "backbones/pretrain_mae.py", "backbones/pretrain_supervised.py"),
}
MODULES = sorted(path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("*.py"))


def imported(path: str) -> set[str]:
    """First names of the absolute imports of a module."""
    tree = ast.parse((EXAMPLES / path).read_text())
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    found |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
    return {name.partition(".")[0] for name in found}


@pytest.mark.parametrize("path", MODULES)
def test_imports(path: str) -> None:
    package = path.partition("/")[0] if "/" in path else None
    names = imported(path)
    assert not names & SCRIPTS, "a script is imported; move what is shared into a package"
    if path not in LAUNCHERS:
        assert package not in names, "modules of the same package are imported relatively"
        assert "sys.path" not in (EXAMPLES / path).read_text()


def test_shared_code_knows_nothing_of_what_uses_it() -> None:
    users = PACKAGES - {"paper"}
    assert {"paper", "study"} <= PACKAGES
    assert not [path for path in MODULES if path.startswith("paper/") and imported(path) & users]


def test_at_the_top_there_are_only_scripts() -> None:
    assert [name for name in SCRIPTS if '__name__ == "__main__"' not in (EXAMPLES / f"{name}.py").read_text()] == []


def test_no_test_file_imports_another() -> None:
    tests = sorted(Path(__file__).parents[1].glob("test_*.py"))
    names = {path.stem for path in tests}
    assert [path.name for path in tests if imported(str(path)) & names] == []
