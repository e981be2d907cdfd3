"""The paper's settings by task and backbone, arguments that win over them, and what each method trains."""

import dataclasses

import pytest
import torch
from torch.nn import Linear

from gated_prompt import ConfigError, GatedPromptError
from gated_prompt.data.fgvc import FGVC
from gated_prompt.data.vtab import TASKS
from gated_prompt.errors import DataError
from gated_prompt.finetune import arguments as image_arguments
from gated_prompt.finetune.methods import add_lora, backbone_kind, build_model, prompt_config
from gated_prompt.finetune.recipe import METHODS, entry_block
from gated_prompt.finetune.runs import grid
from gated_prompt.finetune.shared_arguments import PromptArguments
from gated_prompt.shipped import SHIPPED_BACKBONE
from gated_prompt.training.optim import optimizer_groups
from helpers.models import dinov2, vit
from paper import arguments
from paper.presets import TABLE_5, Preset, paper_preset
from paper.tasks import load_task
from train_fgvc import Arguments as FgvcArguments
from train_vtab import Arguments


def parse(*argv: str, kind=Arguments):
    return arguments.parse_arguments(kind, list(argv), lambda args: args.task)


@pytest.mark.parametrize(
    ("task", "kind", "row"),  # from the paper's Table 5
    [
        ("caltech101", "moco", (128, 10, 2.5, -4)),
        ("oxford_iiit_pet", "moco", (64, 100, 1, -1)),
        ("smallnorb_azi", "mae", (128, 1, 0.1, -20)),
        ("resisc45", "mae", (128, 10, 0.25, -5)),
        ("flowers", "mae", (64, 100, 0.1, -15)),
        ("ade20k", "moco", (16, 100, 0.001, -10)),
    ],
)
def test_rows_of_the_paper(task, kind, row) -> None:
    assert dataclasses.astuple(paper_preset(task, kind, "gated")) == row


def test_all_25_tasks_have_a_row_for_both_backbones() -> None:
    assert set(TABLE_5) == {*TASKS, *FGVC, "ade20k"}
    assert sum(len(row) for row in TABLE_5.values()) == 50
    assert sum(TABLE_5[task][0][1] == 1 for task in TASKS) == 15  # the paper: one prompt for 15 of 19 tasks with MAE


def test_deep_has_ten_prompts_a_block_where_gated_has_a_hundred() -> None:
    assert paper_preset("cub", "mae", "deep") == Preset(64, 10, 0.1, -5)
    assert paper_preset("caltech101", "moco", "deep").num_virtual_tokens == 10
    assert paper_preset("cub", "mae", "zero_start").num_virtual_tokens == 10
    assert paper_preset("cub", "mae", "shallow").num_virtual_tokens == 100


def test_zero_start_pools_no_prompts() -> None:
    def pooling(asked: str) -> str | None:
        return prompt_config("zero_start", PromptArguments(pooling=asked), mae_backbone=True).pooling

    assert (pooling("auto"), pooling("none")) == ("patches", None)
    assert prompt_config("zero_start", PromptArguments(), mae_backbone=False).pooling is None
    with pytest.raises(ConfigError, match="contradicts pooling='prompts'"):
        prompt_config("zero_start", PromptArguments(pooling="prompts"), mae_backbone=True)
    with pytest.raises(ConfigError, match="zero_start=True needs deep=True"):
        prompt_config("gated", PromptArguments(zero_start=True), mae_backbone=False)


def test_the_preset_fills_in_what_was_not_given() -> None:
    args, prompts = parse("--task", "dtd", "--preset", "paper")  # the shipped backbone is a masked autoencoder
    assert (args.per_device_train_batch_size, args.learning_rate, args.head_init) == (128, 0.25, "kaiming")
    assert (prompts.num_virtual_tokens, prompts.gate_init) == (1, -1)
    args, prompts = parse("--task", "dtd", "--preset", "paper", "--backbone_kind", "moco", "--backbone", "some/vit")
    assert (args.learning_rate, prompts.num_virtual_tokens, prompts.gate_init) == (1, 10, -5)
    args, prompts = parse("--task", "cars", "--preset", "paper", kind=FgvcArguments)
    assert (args.per_device_train_batch_size, args.learning_rate, prompts.num_virtual_tokens) == (64, 0.25, 100)


def test_arguments_win_over_the_preset_even_at_their_defaults() -> None:
    given = ["--learning_rate", "0.03", "--gate_init", "-5.0", "--per_device_train_batch_size", "32"]
    args, prompts = parse("--task", "dtd", "--preset", "paper", *given, "--head_init", "model")
    assert (args.learning_rate, args.per_device_train_batch_size, args.head_init) == (0.03, 32, "model")
    assert (prompts.gate_init, prompts.num_virtual_tokens) == (-5.0, 1)


def test_without_a_preset_nothing_changes() -> None:
    args, prompts = parse("--task", "dtd")
    assert args == Arguments(task="dtd")
    assert prompts == PromptArguments()


def test_batches_of_the_preset_are_shared_between_processes(monkeypatch) -> None:
    monkeypatch.setattr(arguments, "PartialState", lambda: type("State", (), {"num_processes": 4}))
    assert parse("--task", "dtd", "--preset", "paper")[0].per_device_train_batch_size == 32
    monkeypatch.setattr(arguments, "PartialState", lambda: type("State", (), {"num_processes": 3}))
    with pytest.raises(GatedPromptError, match="batches of 128 images, which 3 processes cannot share"):
        parse("--task", "dtd", "--preset", "paper")
    given = ("--per_device_train_batch_size", "40")
    assert parse("--task", "dtd", "--preset", "paper", *given)[0].per_device_train_batch_size == 40


def test_the_recommended_recipe_is_the_default_of_train_images() -> None:
    args, prompts = parse("--preset", "recommended")
    _, own, own_prompts = image_arguments.parse(["--train_dir", "unused"])
    for name in ("num_train_epochs", "per_device_train_batch_size", "read_block", "weight_decay"):
        assert getattr(args, name) == getattr(own, name), name
    assert dataclasses.replace(prompts, prompt_dropout=None) == own_prompts
    assert (args.method, args.prompt_start, prompts.prompt_dropout) == ("zero_start", "random", 0.0)
    assert (prompts.num_virtual_tokens, prompts.gate_init, prompts.insert_at) == (10, -3.0, None)
    assert (args.num_train_epochs, args.per_device_train_batch_size) == (10, 20)
    assert args.warmup_epochs / args.num_train_epochs == own.warmup_ratio == 0.1
    assert (args.optimizer, args.schedule_by, args.head_init, args.cache_prefix) == ("adamw", "step", "probe", True)
    assert (args.learning_rate, args.head_learning_rate) == (0.01, pytest.approx(0.0003))
    assert vars(grid("zero_start")[0]) == {"main": 0.01, "gates": 0.01, "head": pytest.approx(0.0003)}
    assert len(grid("zero_start")) == len(grid("gated")) == 8


def test_the_recommended_settings_of_gated_prompts() -> None:
    args, prompts = parse("--preset", "recommended", "--method", "gated")
    assert (args.method, args.prompt_start, prompts.prompt_dropout) == ("gated", "sample", 0.1)
    assert (args.learning_rate, args.head_learning_rate) == (0.003, pytest.approx(0.0003))
    assert vars(grid("gated")[0]) == {"main": 0.003, "gates": 0.003, "head": pytest.approx(0.0003)}


def test_what_is_given_wins_over_the_recommended_recipe() -> None:
    args, prompts = parse("--preset", "recommended", "--read_from", "2", "--insert_at", "0", "--optimizer", "sgd")
    assert (args.read_block, prompts.read_from, prompts.insert_at, args.optimizer) == ("last", 2, 0, "sgd")
    assert not hasattr(parse("--preset", "recommended", kind=FgvcArguments)[0], "cache_prefix")


def test_prompts_enter_half_way() -> None:
    """As measured: of 5 blocks that run, at block 2; of 12 at block 6."""
    assert [entry_block("gated", read) for read in (0, 4, 5, 11)] == [0, 2, 3, 6]
    assert entry_block("zero_start", 11) == entry_block("shallow", 11) == 0


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--preset", "best"], "--preset: invalid choice: 'best' .*none.*, .*paper.*, .*recommended"),
        (["--preset", "recommended", "--method", "lora"], "recommended is for prompts, and --method lora has none"),
        (["--read_block", "-1"], "--read_block is '-1'. Choose from: best, last, numbers from 0"),
        (["--schedule_by", "day"], "--schedule_by: invalid choice: 'day' .*epoch.*, .*step"),
        (["--preset", "paper"], "no settings for task 'digits'. It has: caltech101, cifar"),
        (
            ["--preset", "paper", "--task", "dtd", "--backbone", "a/vit"],
            "Choose with --backbone_kind mae or",
        ),
        (["--method", "prompt"], "--method: invalid choice: 'prompt' .*gated.*, .*gate_only.*, .*full.*, .*lora"),
        (["--method", "shallow", "--gates", "true"], "--gates True contradicts --method shallow"),
        (["--method", "gate_only", "--temperature", "true"], "--temperature True contradicts --method gate_only"),
        (["--method", "deep", "--deep", "false"], "--deep False contradicts --method deep"),
    ],
)
def test_faults(argv, words) -> None:
    with pytest.raises(GatedPromptError, match=words):
        parse(*argv)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (str(SHIPPED_BACKBONE), "mae"),
        ("facebook/vit-mae-base", "mae"),
        ("timm/vit_base_patch16_224.mae", "mae"),
        ("backbones/mocov3-ViT-B", "moco"),
        ("nyu-visionx/moco-v3-vit-b", "moco"),
        ("maerz/vit", "other"),
        ("facebook/dinov2-base", "other"),
        ("mae-and-moco", "other"),
    ],
)
def test_kinds_by_name(name, kind) -> None:
    assert backbone_kind(name) == kind


def test_kinds_that_are_wrong() -> None:
    assert backbone_kind("a/vit", "moco") == "moco"
    with pytest.raises(GatedPromptError, match=r"unknown --backbone_kind 'dino'. Choose from: auto, mae, moco, other"):
        backbone_kind("a/vit", "dino")
    with pytest.raises(GatedPromptError, match="--backbone_kind moco contradicts --backbone: the shipped one is mae"):
        backbone_kind(str(SHIPPED_BACKBONE), "moco")


def build(backbone, method, **settings):
    return build_model(
        str(backbone), method, PromptArguments(num_virtual_tokens=3, pooling="none"), ["a"] * 7, **settings
    )


@pytest.mark.parametrize("method", METHODS)
def test_groups_hold_everything_that_is_trained_once(backbone, method) -> None:
    model = build(backbone, method)
    groups = optimizer_groups(model, 0.1, 0.2, {"head": {"lr": 0.3}})
    sizes = {group["name"]: sum(p.numel() for p in group["params"]) for group in groups}
    head, prompts, gates, temperatures = 7 * 33, 3 * 32, 3, 4
    everything = sum(p.numel() for p in model.parameters())
    assert (
        sizes
        == {
            "gated": {"prompts": prompts, "gates": gates, "temperatures": temperatures, "head": head},
            "gate_only": {"prompts": prompts, "gates": gates, "head": head},
            "temperature_only": {"prompts": prompts, "temperatures": temperatures, "head": head},
            "shallow": {"prompts": prompts, "head": head},
            "deep": {"prompts": 4 * prompts, "head": head},
            "zero_start": {"prompts": 4 * prompts, "gates": 4 * 4, "head": head},
            "linear": {"head": head},
            "full": {"other": everything - head, "head": head},
            "lora": {"other": 4 * 2 * 8 * (32 + 32), "head": head},
        }[method]
    )
    assert all(group["lr"] == (0.3 if group["name"] == "head" else 0.1) for group in groups)
    assert {group["weight_decay"] for group in groups} == {0.2}
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_settings_for_what_is_not_trained_are_refused(backbone) -> None:
    for method, words in (
        ("shallow", "the group has no trainable parameters"),
        ("lora", "gates have their own settings"),
    ):
        with pytest.raises(GatedPromptError, match=words):
            optimizer_groups(build(backbone, method), 0.1, 0.0, {"gates": {"lr": 1.0}})


def test_lora_sits_on_queries_and_values_of_every_block() -> None:
    for base in (vit(), dinov2()):
        names = {n.split(".lora_A")[0] for n, _ in add_lora(base, 2).named_parameters() if ".lora_A." in n}
        assert len(names) == 8
        assert {n.rpartition(".")[2] for n in names} in ({"q_proj", "v_proj"}, {"query", "value"})
    with pytest.raises(GatedPromptError, match=r"--lora_r is 0. Expected at least 1"):
        add_lora(vit(), 0)


def test_lora_starts_as_the_base_model_and_reads_the_patches_where_asked(backbone) -> None:
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    logits = {}
    for method in ("linear", "lora"):
        torch.manual_seed(0)
        model = build_model(str(backbone), method, PromptArguments(pooling="patches"), ["a"] * 7).eval()
        with torch.no_grad():
            logits[method] = model(pixels).logits
    assert torch.equal(logits["linear"], logits["lora"])
    with torch.no_grad():
        assert not torch.allclose(build(backbone, "lora").eval()(pixels).logits, logits["lora"])


def test_the_official_head() -> None:
    from gated_prompt.finetune.methods import initialize_heads

    model = vit(num_labels=400)
    initialize_heads(model, "kaiming")
    assert isinstance(model.classifier, Linear)
    assert model.classifier.weight.std().item() == pytest.approx((2 / 400) ** 0.5, rel=0.03)
    assert not model.classifier.bias.any()
    with pytest.raises(GatedPromptError, match=r"unknown --head_init 'zeros'. Choose from: model, kaiming, probe"):
        initialize_heads(model, "zeros")


def test_the_search_trains_on_800_and_scores_the_200() -> None:
    def pixels(data):
        return [image.tobytes() for image, _ in data]

    search, final = load_task("digits", None, "train800", "val200"), load_task("digits")
    assert (len(search.train), len(search.eval), len(final.train), len(final.eval)) == (800, 200, 1000, 797)
    assert pixels(search.train) + pixels(search.eval) == pixels(final.train)
    assert len(set(pixels(final.train) + pixels(final.eval))) == 1797


@pytest.mark.parametrize(
    ("splits", "words"),
    [
        (("train800val200", "val200"), "train800val200 holds the images of --eval_split val200. Train on train800"),
        (("train1000", "test"), "unknown --train_split 'train1000'. Choose from: train800val200, train800"),
        (("train800", "val"), "unknown --eval_split 'val'. Choose from: test, val200"),
    ],
)
def test_splits_that_are_refused(splits, words) -> None:
    with pytest.raises(DataError, match=words):
        load_task("digits", None, *splits)
