# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""`read_from=k`: prompts leave after block k, its tokens go to the head, and the blocks above do not run."""

import dataclasses
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from peft import PeftModel, get_peft_model
from torch import nn

import gated_prompt
from gated_prompt import (
    ArchitectureError,
    ConfigError,
    GatedPromptConfig,
    GatedPromptError,
    UnsupportedOperationError,
    find_vision_transformer,
)
from gated_prompt.plots import prompt_attention
from gated_prompt.tuner.request import Request, requested
from helpers.by_hand import prompts_by_hand
from helpers.families import DEPTH, HERE, Case
from helpers.families_more import MORE, More
from helpers.models import bank_of, build, dinov2, images, vit
from helpers.prompted import P, prompted, read, tensors, trained

K = 1  # the block that is read, of four
MAPS = ("Backbone", "ForSemanticSegmentation", "ForPoseEstimation", "ForDepthEstimation")  # of several blocks' tokens
READ = [case for case in HERE if not case.name.endswith(MAPS)]
SHORTENED = [case for case in READ if case.config]
# transformers 5.2x reports single hidden states, by index.
SELECTS = bool(find_spec("transformers.utils.output_capturing")) and hasattr(
    import_module("transformers.utils.output_capturing"), "select_hidden_states"
)
# What the loop by hand does not know: hidden padding, rotations, norms of queries. `check` does (test_check.py).
UNKNOWN = ("Siglip2", "qk-norm", "rotary")
EVERY = [*HERE, *(case for case in MORE if case.here)]
BY_HAND = [case for case in EVERY if not case.name.endswith(MAPS) and not any(part in case.id for part in UNKNOWN)]
REFUSED = [case for case in EVERY if case.name.endswith(MAPS)]


def cases(chosen: list[Any]) -> Any:
    return pytest.mark.parametrize("case", chosen, ids=[case.id for case in chosen])


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def blocks_of(model: nn.Module) -> list[nn.Module]:
    return find_vision_transformer(model.base_model.model if isinstance(model, PeftModel) else model).blocks


def runs_of(model: nn.Module) -> list[int]:
    """A list that forwards fill with the blocks that compute, recognized by their last Linear."""
    runs: list[int] = []
    for index, block in enumerate(blocks_of(model)):
        linear = [m for m in block.modules() if isinstance(m, nn.Linear)][-1]
        linear.register_forward_pre_hook(lambda *_, index=index: runs.append(index))
    return runs


def covered(model: nn.Module) -> list[int]:
    """The blocks with a replaced `forward`."""
    return [index for index, block in enumerate(blocks_of(model)) if "forward" in vars(block)]


def tuned(base: nn.Module | None = None, **settings: Any) -> PeftModel:
    config = GatedPromptConfig(**{"num_virtual_tokens": 3, "gate_init": 0.0, "prompt_dropout": 0.0, **settings})
    model = get_peft_model(base or vit(), config).eval()
    shake(model)
    return model


def shake(model: nn.Module) -> None:
    noise = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.rand(parameter.shape, generator=noise)


def logits(model: nn.Module, **kwargs: Any) -> torch.Tensor:
    return model(pixel_values=images(), **kwargs).logits


# What is computed.


def query_of(block: nn.Module) -> nn.Module:
    return next(m for name, m in block.named_modules() if name.rpartition(".")[2] in ("q_proj", "query", "qkv"))


def compared(case: Case | More, model: nn.Module) -> torch.Tensor:
    return read(case, case.run(model)) if isinstance(case, Case) else case.run(model).flatten()


@cases(BY_HAND)
def test_every_family_against_a_loop_by_hand(case: Case | More) -> None:
    if "Llava" in case.id and not SELECTS:
        pytest.skip("asks this version of transformers for all hidden states, to take the last; that is refused")
    base, model = case.build(), tuned(case.build(), read_from=2, num_virtual_tokens=P)
    plain, runs = compared(case, base), runs_of(model)
    found, bank = compared(case, model), bank_of(model)
    assert runs == [0, 1, 2]
    heads = {n.replace(".modules_to_save.default", ""): p for n, p in model.named_parameters() if ".default." in n}
    base.load_state_dict({n.removeprefix("base_model.model."): p for n, p in heads.items()}, strict=False)
    gates = bank.gated_prompt_gate_logits["default"].sigmoid()
    taus = bank.gated_prompt_temperatures["default"]
    assert (gates.shape, taus.shape) == ((2,), (3,))
    blocks, tokens = blocks_of(base), bank.gated_prompt_tokens["default"][0]
    with prompts_by_hand(blocks[:3], [query_of] * 3, tokens, gates, taus, left_out=blocks[3:]):
        wanted = compared(case, base)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    assert (wanted - plain).abs().max() > 1e-3 * plain.abs().max()


def shortened(case: Case) -> nn.Module:
    """The case with K + 1 blocks only, and the same weights in them."""
    short = dataclasses.replace(case, settings=case.settings | {"num_hidden_layers": K + 1}).build()
    state = case.build().state_dict()
    assert short.state_dict().keys() < state.keys()
    short.load_state_dict({name: state[name] for name in short.state_dict()})
    return short


@cases(SHORTENED)
def test_every_family_is_the_model_shortened_to_that_block(case: Case) -> None:
    short, model = prompted(case, shortened(case)), prompted(case, read_from=K)
    wanted, found = tensors(case.run(short)), tensors(case.run(model))
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert torch.equal(found[name], wanted[name]), name
    gradients, others = trained(case, model), trained(case, short)
    assert gradients.keys() == others.keys()
    for name in others:
        assert torch.equal(gradients[name], others[name]), name


SETTINGS = {
    "deep": {"deep": True},
    "shallow": {"gates": False, "temperature": False},
    "from block 1": {"insert_at": 1},
    "pooled": {"pooling": "prompts_and_patches"},
    "pooled, chosen gates": {"pooling": "prompts", "gated_blocks": [0, 2]},
    "patches": {"pooling": "patches"},
    "hard": {"hard_gates": True},
    "low rank": {"prompt_rank": 2},
    "dropout": {"prompt_dropout": 0.5},
    "one block": {"insert_at": 2},
    "one block, deep": {"insert_at": 2, "deep": True, "pooling": "prompts"},
}


@pytest.mark.parametrize("attentions", [False, True], ids=["passive", "in-band"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_every_setting_is_that_of_the_shortened_model(settings: dict, attentions: bool) -> None:
    def results(model: PeftModel) -> list[torch.Tensor]:
        kwargs = {"output_attentions": True} if attentions else {}
        found = [logits(model, **kwargs)]
        gated_prompt.prune(model, 0.65)
        found.append(logits(model, **kwargs))
        model.train()
        torch.manual_seed(3)
        with torch.enable_grad():
            logits(model, **kwargs).square().mean().backward()
        return found + [p.grad for p in model.parameters() if p.grad is not None]

    long, short = vit(), vit(num_hidden_layers=3)
    short.load_state_dict(long.state_dict(), strict=False)
    torch.manual_seed(2)
    model = tuned(long, read_from=2, **settings)
    torch.manual_seed(2)
    wanted, found = results(tuned(short, **settings)), results(model)
    assert len(found) == len(wanted) > 3
    assert all(map(torch.equal, found, wanted))
    assert not torch.equal(found[0], logits(tuned(vit(), **settings)))


def test_the_last_block_is_none() -> None:
    torch.manual_seed(2)
    model = tuned(read_from=DEPTH - 1)
    torch.manual_seed(2)
    runs = runs_of(model)
    assert torch.equal(logits(model), logits(tuned()))
    assert runs == [0, 1, 2, 3]


# Beside others.


def crowd(base: nn.Module) -> PeftModel:
    model = get_peft_model(base, GatedPromptConfig(num_virtual_tokens=3), adapter_name="all")
    for name, block in {"early": 0, "middle": 2, "like": 2}.items():
        config = GatedPromptConfig(num_virtual_tokens=3, gate_init=0.0, read_from=block)
        model.add_adapter(name, config)
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name or "gated_prompt_" in name:
            parameter.data += 0.3 * torch.rand(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    return model.eval()


@pytest.mark.parametrize("base", [vit, dinov2, lambda: build("ViTModel", "ViTConfig")], ids=["vit", "dinov2", "body"])
def test_several_in_one_batch_and_one_after_another(base: Any) -> None:
    model, alone = crowd(base()), {}
    plain = next(iter(tensors(base()(pixel_values=images())).values()))
    runs = runs_of(model)

    def run(**kwargs: Any) -> torch.Tensor:
        return next(iter(tensors(model(pixel_values=images(), **kwargs)).values()))

    for name, last in {"all": 3, "early": 0, "middle": 2, "like": 2}.items():
        model.set_adapter(name)
        runs.clear()
        alone[name] = run()
        assert runs == list(range(last + 1))
    with model.disable_adapter():
        runs.clear()
        assert torch.equal(run(), plain)
        assert runs == [0, 1, 2, 3]
    for names in (["early", "__base__"], ["middle", "like"], ["all", "early"], ["__base__", "middle"]):
        runs.clear()
        found = run(adapter_names=names)
        assert len(runs) == {"early": 5, "middle": 3, "all": 5, "__base__": 7}[names[0]]
        for row, name in enumerate(names):
            wanted = plain if name == "__base__" else alone[name]
            assert torch.allclose(found[row], wanted[row], rtol=1e-5, atol=1e-6), (names, name)
            if name == "__base__":  # rows of the base are the base's, bit for bit
                assert torch.equal(found[row], next(iter(tensors(base()(images()[row : row + 1])).values()))[0])


def test_the_blocks_that_run_are_those_of_the_adapter_in_use() -> None:
    base = vit()
    keys, plain, runs = list(base.state_dict()), logits(base), runs_of(base)

    def ran(model: nn.Module) -> list[int]:
        runs.clear()
        logits(model)
        return list(runs)

    model = tuned(base)
    assert (ran(model), covered(model)) == ([0, 1, 2, 3], [0, 1, 2, 3])
    wanted = logits(model)
    model.add_adapter("middle", GatedPromptConfig(num_virtual_tokens=3, read_from=2))
    model.add_adapter("early", GatedPromptConfig(num_virtual_tokens=3, read_from=0))
    assert torch.equal(logits(model), wanted)
    model.set_adapter("early")
    assert ran(model) == [0]
    model.set_adapter("middle")
    model.delete_adapter("early")
    assert ran(model) == [0, 1, 2]
    with pytest.raises(ConfigError):
        model.add_adapter("wrong", GatedPromptConfig(read_from=9))
    assert ran(model) == [0, 1, 2]
    with model.disable_adapter():
        assert ran(model) == [0, 1, 2, 3]
    restored = model.unload()
    assert covered(restored) == []
    assert list(restored.state_dict()) == keys
    assert torch.equal(logits(restored), plain)


def test_names_are_those_without_it() -> None:
    assert list(tuned(read_from=1).state_dict()) == list(tuned().state_dict())
    assert [n for n, _ in tuned(read_from=1).named_modules()] == [n for n, _ in tuned().named_modules()]


def test_an_adapter_deleted_in_the_middle_of_a_forward_is_an_error() -> None:
    """Without the check, all blocks after the deletion would silently run again."""
    model = tuned(read_from=1)
    model.add_adapter("other", GatedPromptConfig(num_virtual_tokens=3))
    handle = blocks_of(model)[1].register_forward_hook(lambda *_: model.delete_adapter("default"))
    with (
        pytest.warns(UserWarning, match="was active which is now deleted"),
        pytest.raises(
            UnsupportedOperationError,
            match="switched, deleted or disabled between two blocks of one forward, before block 2",
        ),
    ):
        model.base_model.model(pixel_values=images())
    handle.remove()
    assert logits(model).isfinite().all()


@pytest.mark.parametrize("when", ["before", "after"])
def test_beside_hooks_of_accelerate(when: str) -> None:
    """accelerate also sets a `forward` on modules; in either order, both can be removed and the base is restored."""
    base = vit()
    plain, model = logits(base), None
    if when == "after":
        model = tuned(base, read_from=1)
    for block in blocks_of(base):
        add_hook_to_module(block, ModelHook())
    model = model or tuned(base, read_from=1)
    runs = runs_of(model)
    assert torch.equal(logits(model), logits(tuned(read_from=1)))
    assert runs == [0, 1]
    restored = model.unload()
    assert torch.equal(logits(restored), plain)
    for block in blocks_of(restored):
        remove_hook_from_module(block)
    assert torch.equal(logits(restored), plain)


def test_blocks_that_are_called_without_the_model_around_them() -> None:
    """Nothing would remove the prompts from what is read between them; deep prompts never leave a block."""
    case = next(case for case in HERE if case.id == "timm-like-cls")

    def by_hand(root: nn.Module) -> torch.Tensor:
        tokens, rotations = root.embed(images())
        for block in root.blocks:
            tokens = block(tokens, rope=rotations)
        return root.head(root.norm(tokens)[:, 0])

    with pytest.raises(UnsupportedOperationError, match="outside of the forward of the module that holds the blocks"):
        by_hand(prompted(case, read_from=1).base_model.model)
    model = prompted(case, read_from=1, deep=True)
    runs = runs_of(model)
    found = by_hand(model.base_model.model)
    assert runs == [0, 1]
    assert torch.equal(found, model(images()))


# What reads more than one block.


@cases(REFUSED)
def test_maps_of_several_blocks_are_refused(case: Case | More) -> None:
    """At once if the model runs on images alone, else by the first forward; the base is then unchanged."""
    base = case.build().requires_grad_(False)
    wanted = tensors(compared(case, base))
    with pytest.raises(GatedPromptError, match=r"reads the output of several|hidden states above block 0"):
        case.run(get_peft_model(base, GatedPromptConfig(num_virtual_tokens=3, read_from=0)).eval())
    if gated_prompt.has_prompts(base):
        with requested(Request(base.gated_prompt, adapters=(), own_heads=True)):
            assert all(map(torch.equal, tensors(compared(case, base)).values(), wanted.values()))
        return
    assert covered(base) == []
    assert all(map(torch.equal, tensors(compared(case, base)).values(), wanted.values()))


def test_a_model_that_reads_blocks_without_asking_for_states_is_refused() -> None:
    class Sums(nn.Module):
        """Adds up what all blocks return."""

        def __init__(self) -> None:
            super().__init__()
            self.vit = build("ViTModel", "ViTConfig")
            self.head = nn.Linear(32, 2)

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            states: list[torch.Tensor] = []
            handles = [
                block.register_forward_hook(lambda _, args, out: states.append(out)) for block in blocks_of(self.vit)
            ]
            self.vit(pixel_values=pixel_values)
            for handle in handles:
                handle.remove()
            return self.head(sum(state[0] if isinstance(state, tuple) else state for state in states)[:, 0])

    with pytest.raises(ArchitectureError, match="read_from=1 skips the blocks above 1, but Sums reads the output"):
        get_peft_model(Sums(), GatedPromptConfig(read_from=1, modules_to_save=["head"]))
    get_peft_model(Sums(), GatedPromptConfig(read_from=3, modules_to_save=["head"]))


def test_hidden_states_above_the_block_are_refused() -> None:
    model = tuned(build("ViTModel", "ViTConfig", attn_implementation="eager"), read_from=1)
    wanted = model(pixel_values=images()).last_hidden_state
    with pytest.raises(UnsupportedOperationError, match=r"above block 1, but adapter 'default' has read_from=1"):
        model(pixel_values=images(), output_hidden_states=True)
    assert torch.equal(model(pixel_values=images()).last_hidden_state, wanted)
    with model.disable_adapter():
        assert len(model(pixel_values=images(), output_hidden_states=True).hidden_states) == DEPTH + 1
    model.base_model.model.config.output_hidden_states = True
    with pytest.raises(UnsupportedOperationError, match="above block 1"):
        model(pixel_values=images())


@pytest.mark.parametrize(("asked", "fine"), [(-1, True), (2, True), ([1, 2], True), (3, False), ([2, -1], False)])
def test_single_hidden_states(asked: int | list[int], fine: bool) -> None:
    """transformers 5.2x selects states by index: vision-language models take the last, or one below it."""
    base = build("ViTModel", "ViTConfig")
    torch.manual_seed(2)
    model = tuned(base, read_from=1)
    if not fine:
        with pytest.raises(UnsupportedOperationError, match="above block 1"):
            model(pixel_values=images(), output_hidden_states=asked)
        return
    if not SELECTS:
        pytest.skip("this transformers reports all hidden states or none")
    found = model(pixel_values=images(), output_hidden_states=asked)
    short = build("ViTModel", "ViTConfig", num_hidden_layers=2)
    short.load_state_dict(model.base_model.model.state_dict(), strict=False)
    torch.manual_seed(2)
    wanted = tuned(short)(pixel_values=images(), output_hidden_states=True).hidden_states
    chosen = [-1] if asked == -1 else [asked] if isinstance(asked, int) else asked
    assert all(torch.equal(found.hidden_states[index], wanted[index]) for index in chosen)


@cases([case for case in SHORTENED if case.reports and "vision" not in case.name.lower()])
def test_attentions_are_those_of_the_blocks_that_run(case: Case) -> None:
    model = prompted(case, attention="eager", read_from=K, insert_at=1)
    found = tensors(case.run(model, output_attentions=True))
    maps = {n: t for n, t in found.items() if "attentions." in n and "text" not in n and "decoder" not in n}
    assert [t.shape[-1] - case.tokens() for t in maps.values()] == [0, P]
    if case.family not in ("ViT-MAE", "SigLIP 2"):
        inputs = case.inputs()
        shown = prompt_attention(model, inputs.pop("pixel_values"), inputs=inputs)
        assert shown.blocks == [1]


# Files.


def test_a_file_keeps_it(tmp_path: Path) -> None:
    model = tuned(read_from=1)
    gated_prompt.save(model, tmp_path)
    loaded = gated_prompt.load(vit(), tmp_path)
    runs = runs_of(loaded)
    assert torch.equal(logits(loaded.eval()), logits(model))
    assert (loaded.peft_config["default"].read_from, runs) == (1, [0, 1])
    assert "3 tokens, inserted at block 0 of 4, read from block 1, pooling" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("settings", [{}, {"deep": True, "gates": False, "temperature": False}], ids=["gated", "deep"])
def test_a_file_with_another_block_than_its_tensors_is_refused(settings: dict, tmp_path: Path) -> None:
    gated_prompt.save(tuned(read_from=1, **settings), tmp_path)
    path = tmp_path / "adapter_config.json"
    for other in ("0", "2", "null"):
        text = path.read_text().replace('"read_from": 1', f'"read_from": {other}')
        path.write_text(text)
        with pytest.raises(GatedPromptError, match=r"has shape|does not belong"):
            gated_prompt.load(vit(), tmp_path)
        path.write_text(text.replace(f'"read_from": {other}', '"read_from": 1'))
    gated_prompt.load(vit(), tmp_path)


def test_a_file_beyond_its_base_is_refused(tmp_path: Path) -> None:
    gated_prompt.save(tuned(gates=False, temperature=False), tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text().replace('"read_from": null', '"read_from": 7'))
    base = vit()
    with pytest.raises(ConfigError, match=r"read_from is 7. The last block of this ViTForImageClassification is 3"):
        gated_prompt.load(base, tmp_path)
    assert covered(base) == []


# What is made from it.


def test_starts_and_readouts() -> None:
    model = tuned(deep=True, insert_at=1, read_from=2, temperature=False, temperature_init=1.5)
    gated_prompt.initialize_prompts(model, [images(8)], overwrite=True)
    assert bank_of(model).gated_prompt_tokens["default"].shape == (2, 3, 32)
    assert gated_prompt.temperatures(model).tolist() == [1.5, 1.5]
    gated = tuned(read_from=2)
    assert (gated_prompt.gates(gated).shape, gated_prompt.selection_ratios(gated).shape) == ((2,), (2,))
    assert gated_prompt.prune(gated, 0.99) == [0, 1, 2]
    recorder = gated_prompt.GateRecorder()
    recorder.record(gated, 1)
    assert (recorder.gated_blocks, recorder.blocks) == ([0, 1], [0, 1, 2])


def test_a_head_is_fitted_to_what_the_block_gives() -> None:
    model = tuned(read_from=1)
    pixels, labels = images(20, seed=3), torch.arange(20) % 5
    gated_prompt.initialize_head(model, [(pixels, labels)], l2=1e-3)
    assert (model(pixel_values=pixels).logits.argmax(-1) == labels).float().mean() > 0.9
