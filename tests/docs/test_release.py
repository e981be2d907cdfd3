# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What a release uploads: wheel and sdist build, pass twine, and the installed wheel runs the README's first lines."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from PIL import Image
from transformers import ViTImageProcessor

import gated_prompt
from helpers.models import build
from helpers.pages import ROOT, blocks

VERSION = gated_prompt.__version__
LOADER = "import torch\ntrain_loader = [(torch.randn(8, 3, 224, 224), torch.arange(8) % 4)]\n"


HIDE = """import sys
sys.modules.update(dict.fromkeys(("fastapi", "locust", "onnx", "pycocotools", "pydantic", "ray", "timm")))
"""  # what no part of the extra [train] may need, though it is installed here


def run(*command: object, cwd: Path, path: Path | None = None) -> str:
    """Standard output of a command that has to end well; `path` comes first where Python looks for modules."""
    settings = {"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "HOME": str(cwd), "OMP_NUM_THREADS": "1"}
    if path is not None:
        settings["PYTHONPATH"] = str(path)
    ended = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=settings, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def site(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed wheel, and nothing of this checkout."""
    folder = tmp_path_factory.mktemp("site")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder]
    run(*install, next(dist.glob("*.whl")), cwd=folder)
    return folder


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheel and sdist of a copy of what git tracks, the sdist first and the wheel from it."""
    for library in ("build", "setuptools", "twine"):
        pytest.importorskip(library, reason=f"{library} is not installed; the extra [test] has it")
    source = tmp_path_factory.mktemp("source")
    for name in ("gated_prompt", "tests", "docs", "examples"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("_build", "__pycache__", "results"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", source / "dist", source, cwd=source)
    return source / "dist"


def test_both_files_pass_twine(dist: Path) -> None:
    assert sorted(file.name for file in dist.iterdir()) == [
        f"gated_prompt-{VERSION}-py3-none-any.whl",
        f"gated_prompt-{VERSION}.tar.gz",
    ]
    printed = run(sys.executable, "-m", "twine", "check", "--strict", *dist.iterdir(), cwd=dist)
    assert printed.count("PASSED") == 2


def test_the_files_hold_the_package(dist: Path) -> None:
    """Every module and nothing else; the sdist can be built again and holds its licence."""
    modules = {str(file.relative_to(ROOT)) for file in (ROOT / "gated_prompt").rglob("*.py")}
    shipped = [*(ROOT / "gated_prompt").rglob("*.html"), *(ROOT / "gated_prompt" / "backbones").rglob("*.*")]
    modules |= {str(file.relative_to(ROOT)) for file in shipped if file.is_file()}
    wheel = set(zipfile.ZipFile(next(dist.glob("*.whl"))).namelist())
    assert {name for name in wheel if ".dist-info/" not in name} == modules | {"gated_prompt/py.typed"}
    with tarfile.open(next(dist.glob("*.tar.gz"))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert modules | {"LICENSE", "README.md", "setup.cfg", "pyproject.toml", "gated_prompt/py.typed"} <= names


def test_the_installed_wheel_runs_the_first_lines_of_the_readme(site: Path, tmp_path: Path) -> None:
    """In a process that sees the wheel and the libraries, but not this folder."""
    work = tmp_path / "work"
    build("Dinov2Model", "Dinov2Config", image_size=224, patch_size=56).save_pretrained(work / "facebook/dinov2-small")
    ViTImageProcessor(size={"height": 224, "width": 224}).save_pretrained(work / "facebook/dinov2-small")
    for index in range(12):
        file = work / "photos" / ("cat", "dog")[index % 2] / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 30), (20 * index, 90 * (index % 2), 50)).save(file)
    code = (
        LOADER
        + blocks("README.md", "python")[0][1]
        + "import gated_prompt\nprint(gated_prompt.__file__, type(model).__name__)\n"
    )
    printed = run(sys.executable, "-c", code, cwd=work, path=site)
    assert printed.split()[-2:] == [str(site / "gated_prompt" / "__init__.py"), "PeftModel"]


@pytest.mark.slow
def test_the_installed_wheel_does_the_main_job(site: Path, tmp_path: Path) -> None:
    """`train` to a report, `predict` with it, and the help of `serve`, without what other extras install."""
    (found,) = distributions(path=[str(site)])
    needed = [Requirement(line) for line in found.requires or []]
    for one in (r for r in needed if r.marker is None or r.marker.evaluate({"extra": "train"})):
        assert one.specifier.contains(version(one.name), prereleases=True), one
    (tmp_path / "sitecustomize.py").write_text(HIDE)
    for index in range(16):
        file = tmp_path / "photos" / ("cat", "dog")[index % 2] / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (15 * index, 200 * (index % 2), 50)).save(file)
    path = Path(os.pathsep.join(map(str, (tmp_path, site))))
    program = [sys.executable, site / "bin" / "gated-prompt"]
    quick = ["--num_train_epochs", "2", "--learning_rate", "0.5", "--methods", "gated"]
    run(*program, "train", "--train_dir", "photos", "--output_dir", "out", *quick, cwd=tmp_path, path=path)
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "cat" in report and "dog" in report and (tmp_path / "out" / "results.json").is_file()
    run(
        *program,
        "predict",
        "--images",
        "photos",
        "--adapters",
        "out",
        "--output",
        "found.csv",
        cwd=tmp_path,
        path=path,
    )
    assert len((tmp_path / "found.csv").read_text().splitlines()) == 1 + 16
    assert "--adapters" in run(*program, "serve", "--help", cwd=tmp_path, path=path)


def test_one_version_everywhere() -> None:
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited is not None and cited[1] == VERSION
    assert f"{VERSION}\n" in (ROOT / "docs" / "upgrading.md").read_text()
