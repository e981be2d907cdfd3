# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The command lines of the scripts: complete help, and one line for a mistake that says what to do."""

import importlib
import runpy
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from peft import PeftConfig

import train_vtab
from gated_prompt import GatedPromptConfig, GatedPromptError
from gated_prompt.cli import predict
from gated_prompt.command_line import CommandLine, mistakes_in_one_line
from gated_prompt.finetune import arguments
from gated_prompt.finetune.arguments import DataArguments, PredictArguments, RunArguments, parse
from gated_prompt.finetune.recipe import PROMPT_STARTS
from gated_prompt.finetune.shared_arguments import PromptArguments
from gated_prompt.predictor import OLD_PROBLEMS
from gated_prompt.shipped import SHIPPED_BACKBONE
from gated_prompt.starts.initialize import METHODS as STARTS
from helpers.pages import ROOT

KINDS = {
    "train_images": (DataArguments, RunArguments, PromptArguments),
    "train_vtab": (train_vtab.Arguments, PromptArguments),
    **{name: (importlib.import_module(name).Arguments, PromptArguments) for name in ("train_fgvc", "train_ade20k")},
    **{name: (importlib.import_module(name).Arguments,) for name in ("reproduce_tables", "speed.compare")},
    **{kind: (importlib.import_module(f"backbones.pretrain_{kind}").Arguments,) for kind in ("mae", "supervised")},
    "predict": (PredictArguments,),
    "serve": (importlib.import_module("gated_prompt.serving.settings").Settings,),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_help_is_complete(name: str) -> None:
    """Every option has a text, and the path of the shipped backbone is put into words."""
    parser = CommandLine(KINDS[name], "What it does.")
    shown = " ".join(parser.format_help().split())
    assert " [options] What it does. " in shown
    assert not [action.dest for action in parser._actions if not action.help]
    assert str(ROOT) not in shown and "None" not in shown
    values = [str(value) for part in parser.parse([]) for value in vars(part).values()]
    assert ("the small ViT that the package ships" in shown) == (
        str(SHIPPED_BACKBONE) in values or name == "reproduce_tables"
    )


def test_switches_and_defaults_in_the_help() -> None:
    words = " ".join(CommandLine(KINDS["train_images"]).format_help().split())
    assert "--no_" not in words and "--with-" not in words
    assert "--augment [true|false] crop and flip at random while training (default: True)" in words
    assert "--seeds INT [INT ...] random seeds. Each method is trained once with each seed (default: 0)" in words
    assert (
        "--backbone TEXT Hub id or folder of a ViT (default: the small ViT that the package ships) --trust_remote_code"
        in words
    )


def test_switches_and_hyphens_are_understood() -> None:
    _, args, prompts = parse(["--train_dir", "x", "--no_augment", "--no-gates", "--num-train-epochs", "3"])
    assert (args.augment, prompts.gates, prompts.temperature, args.num_train_epochs) == (False, False, True, 3)
    assert parse(["--train_dir", "x", "--augment", "false"])[1].augment is False


def test_the_options_of_prompts_are_those_of_the_config() -> None:
    """Names, and defaults where the command line has no words of its own."""
    recorded = {"num_layers", "hidden_size", "num_heads", "detected_prefix_tokens", "weights_sha256"}
    of_peft = {field.name for field in fields(PeftConfig)}
    wanted = {f.name: f.default for f in fields(GatedPromptConfig) if f.name not in recorded | of_peft}
    found = vars(PromptArguments())
    assert list(found) == list(wanted)
    assert {name for name in found if found[name] != wanted[name]} == {"pooling", "temperature_range"}
    assert tuple(found["temperature_range"]) == wanted["temperature_range"]
    assert set(PROMPT_STARTS) == {"random", *STARTS}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--bakbone", "y"], "unknown option '--bakbone'. Did you mean --backbone?"),
        (["--augmnt"], "Did you mean --augment?"),
        (["--problem", "nouns"], "argument --problem: invalid choice: 'nouns' (choose from"),
        (["--methods", "lora", "magic"], "argument --methods: invalid choice: 'magic' (choose from"),
        (["--num_virt", "3"], "unknown option '--num_virt'. Did you mean --num_virtual_tokens?"),
        (["--zzz=1"], "unknown option '--zzz=1'. See --help for all options."),
        (["--num_train_epochs", "ten"], "argument --num_train_epochs: invalid int value: 'ten'. See --help"),
        (["--augment", "perhaps"], "argument --augment: 'perhaps' is neither true nor false. See --help"),
    ],
)
def test_mistakes(argv: list[str], message: str) -> None:
    with pytest.raises(GatedPromptError) as refusal:
        parse(["--train_dir", "x", *argv])
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("old", OLD_PROBLEMS)
def test_problems_may_have_their_older_names(old: str) -> None:
    assert parse(["--train_dir", "x", "--problem", old])[0].problem == OLD_PROBLEMS[old]
    assert arguments.OLD_PROBLEMS == OLD_PROBLEMS  # of predictor.json


SCRIPTS = ("reproduce_tables", "train_ade20k", "train_fgvc", "train_vtab", "demo/app")
SCRIPTS += ("speed/compare", "backbones/pretrain_mae", "backbones/pretrain_supervised")


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_ends_with_the_message(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--no_such_option", "x"])
    monkeypatch.setattr(sys, "path", [str((ROOT / "examples" / name).parent), *sys.path])  # as Python does it
    with pytest.raises(SystemExit, match=r"^error: unknown option '--no_such_option'"):
        runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")


def test_a_misspelt_option_of_predict() -> None:
    with pytest.raises(GatedPromptError, match="Did you mean --adapters"):
        predict.main(["--images", "x", "--adaptors", "y"])


def test_adapters_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(GatedPromptError, match=r"there is no folder .*missing"):
        predict.main(["--images", "x", "--adapters", str(tmp_path / "missing")])
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(GatedPromptError, match=r"has not finished. Repeat its"):
        predict.main(["--images", "x", "--adapters", str(tmp_path)])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full, which is always full, is Linux's")
@pytest.mark.parametrize("count", [1, 10**5])
@pytest.mark.parametrize("by", ["python", "torch", "safetensors"])
def test_a_full_disk_is_one_sentence(by: str, count: int) -> None:
    import torch
    from safetensors import SafetensorError

    def write() -> None:
        if by == "torch":
            torch.save({"a": torch.zeros(count)}, "/dev/full")
        elif by == "python":
            Path("/dev/full").write_text("x" * count)
        else:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(SystemExit) as stopped, mistakes_in_one_line():
        write()
    assert str(stopped.value).startswith("error: the disk is full")
    assert "Free some space, then repeat the command, which continues from" in str(stopped.value)


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError), mistakes_in_one_line():
        _ = 1 / 0
