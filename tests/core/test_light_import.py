"""What is imported when: a mistyped option is answered before torch, and the package needs none of its extras."""

import os
import resource
import subprocess
import sys

import pytest

from helpers.pages import ROOT

HEAVY = ("sklearn", "matplotlib", "ray", "torchmetrics", "accelerate.test_utils", "onnx", "datasets")


def cpu_seconds(command: list[str]) -> tuple[float, subprocess.CompletedProcess[str]]:
    """The CPU time of a program: other programs on the machine do not change it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--train_dri", "photos"], "error: unknown option '--train_dri'. Did you mean --train_dir?"),
        (["train", "--train_dir", "x", "--problem", "nouns"], "error: argument --problem: invalid choice: 'nouns'"),
        (["predict", "--adaptors", "x"], "error: unknown option '--adaptors'. Did you mean --adapters?"),
        (["serve", "--prot", "80"], "error: unknown option '--prot'. Did you mean --port?"),
        (["convert", "backbone", "a", "b", "--kind", "c"], "error: argument --kind: invalid choice: 'c'"),
        (["trian"], "error: unknown command 'trian'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_mistake_is_answered_at_once(words: list[str], message: str) -> None:
    seconds, done = cpu_seconds([sys.executable, "-m", "gated_prompt", *words])
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1 and done.returncode == 1
    assert seconds < 2


@pytest.mark.parametrize(("words", "option"), [(["convert", "backbone"], "--kind"), (["serve"], "--adapters")])
def test_help_that_needs_no_torch(words: list[str], option: str) -> None:
    seconds, done = cpu_seconds([sys.executable, "-m", "gated_prompt", *words, "--help"])
    assert done.returncode == 0 and option in done.stdout, done.stderr
    assert seconds < 2


def test_an_import_loads_no_extras_and_registers_the_method() -> None:
    code = f"""import sys, gated_prompt
from peft import PeftType
assert "GATED_PROMPT" in PeftType.__members__
print([name for name in {HEAVY} if name in sys.modules])"""
    _, done = cpu_seconds([sys.executable, "-c", code])
    assert done.stdout == "[]\n", done.stderr


def test_the_command_line_sees_the_same_names(monkeypatch: pytest.MonkeyPatch) -> None:
    code = """import sys
sys.argv = ["/somewhere/bin/gated-prompt"]
import gated_prompt
assert "torch" not in sys.modules
assert gated_prompt.GatedPromptConfig.__name__ == "GatedPromptConfig"
from peft import PeftType
assert "GATED_PROMPT" in PeftType.__members__
assert all(getattr(gated_prompt, name) is not None for name in gated_prompt.__all__)
try:
    gated_prompt.no_such_name
except AttributeError as error:
    print(error)"""
    _, done = cpu_seconds([sys.executable, "-c", code])
    assert done.stdout == "module 'gated_prompt' has no attribute 'no_such_name'\n", done.stderr
