"""The self-contained script: it prints the accuracy of what it saved, and imports no other script."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.picture_folder import make_folder, paint

SCRIPT = Path(__file__).parents[2] / "examples" / "minimal.py"


def run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A copy outside examples/, so that no other script can be imported."""
    copy = tmp_path / "minimal.py"
    copy.write_text(SCRIPT.read_text())
    command = [sys.executable, str(copy), "--output", str(tmp_path / "adapter"), "--epochs", "2", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)


def test_the_adapter_that_is_loaded_back_scores_the_same(tmp_path: Path, backbone: Path) -> None:
    make_folder(tmp_path / "photos", 18)
    done = run(tmp_path, "--photos", str(tmp_path / "photos"), "--backbone", str(backbone), "--prompts", "2")
    assert done.returncode == 0, done.stderr[-2000:]
    start, trained, again = (float(x) for x in re.findall(r"(?:start|trained|adapter): (\d\.\d+)", done.stdout))
    assert start > 0.6 and trained == again
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_it_is_short() -> None:
    text = SCRIPT.read_text()
    assert len(text.splitlines()) <= 120
    assert not re.search(r"^(from|import) (recipe|own_images|segmentation)", text, re.M)


@pytest.mark.parametrize(
    ("broken", "words"), [(True, "error: The image .* cannot be decoded"), (False, "has 1 subfolders with images")]
)
def test_faults(tmp_path: Path, backbone: Path, broken: bool, words: str) -> None:
    for name in ("cat", "dog")[: 1 + broken]:
        (tmp_path / "photos" / name).mkdir(parents=True)
        paint((0, 0, 0), 0).save(tmp_path / "photos" / name / "1.png")
    if broken:
        (tmp_path / "photos" / "dog" / "2.png").write_bytes(b"nothing")
    done = run(tmp_path, "--photos", str(tmp_path / "photos"), "--backbone", str(backbone))
    assert done.returncode != 0 and re.search(words, done.stderr) and "Traceback" not in done.stderr
