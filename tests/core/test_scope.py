# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""A forward begins and ends with the module that is called, whatever is called, nested or raised inside."""

import copy
import dataclasses
import inspect
import pickle
import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from gated_prompt import ArchitectureError, GatedPromptConfig, GatedPromptError, UnsupportedOperationError, check
from gated_prompt.tuner.request import LOCAL
from helpers.models import bank_of, build, images, vit

NAMES = ["a", "b", "__base__", "b"]


def prompts(**settings: Any) -> GatedPromptConfig:
    return GatedPromptConfig(**{"num_virtual_tokens": 3, "gate_init": 0.0, "prompt_dropout": 0.0, **settings})


def crowd(base: nn.Module, **settings: Any) -> PeftModel:
    """Adapters "a" and "b" of different size, "a" active."""
    model = get_peft_model(base, prompts(**settings), adapter_name="a")
    model.add_adapter("b", prompts(**{"num_virtual_tokens": 2, **settings}))
    generator = torch.Generator().manual_seed(4)
    for key, parameter in model.named_parameters():
        if "modules_to_save" in key or "gated_prompt_" in key:
            parameter.data.add_(2 * torch.rand(parameter.shape, generator=generator))
    return model.eval()


def answers(
    model: PeftModel, read: Callable[[Any], torch.Tensor] = lambda output: output.logits
) -> list[torch.Tensor]:
    """What every way of calling the model returns."""
    found = []
    with torch.no_grad():
        for name in "ba":
            model.set_adapter(name)
            found.append(read(model(images(4))))
        with model.disable_adapter():
            found.append(read(model(images(4))))
        found.append(read(model(images(4), adapter_names=NAMES)))
    return found


def same(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, found, wanted))


def body(model: PeftModel) -> nn.Module:
    return model.base_model.model.vit


def blocks(model: PeftModel) -> list[nn.Module]:
    return bank_of(model).blocks


PLACES: dict[str, Callable[[PeftModel], nn.Module]] = {
    "root": lambda model: model.base_model.model,
    "body": body,
    "embeddings": lambda model: body(model).embeddings,
    "first block": lambda model: blocks(model)[0],
    "last block": lambda model: blocks(model)[-1],
    "attention": lambda model: bank_of(model).vit.attentions[1].attention,
    "key": lambda model: bank_of(model).vit.attentions[3].query_output,
    "head": lambda model: model.base_model.model.classifier,
}


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit, RuntimeError])
@pytest.mark.parametrize("place", PLACES)
def test_whatever_is_raised_leaves_nothing_behind(place: str, kind: type[BaseException]) -> None:
    model = crowd(vit())
    wanted = answers(model)

    def interrupt(*_: Any) -> None:
        raise kind("stop")

    module = PLACES[place](model)
    for register in (module.register_forward_pre_hook, module.register_forward_hook):
        handle = register(interrupt)
        for options in ({}, {"adapter_names": NAMES}):
            with pytest.raises(kind):
                model(images(4), **options)
            assert LOCAL.forward is LOCAL.request is None
        handle.remove()
        assert same(answers(model), wanted)


def test_a_hook_of_the_model_that_is_older_than_the_adapter() -> None:
    base, raising = vit(), []
    for module in (base, base.vit):
        module.register_forward_pre_hook(lambda *_: raising.pop()() if raising else None)
    model = crowd(base)
    wanted = answers(model)

    def stop() -> None:
        raise KeyboardInterrupt

    for count in (1, 2):  # in the root, in its body
        raising[:] = [stop] if count == 1 else [stop, lambda: None]
        with pytest.raises(KeyboardInterrupt):
            model(images(4), adapter_names=NAMES)
        assert same(answers(model), wanted)


def test_an_interrupted_thread_computes_right_afterwards() -> None:
    model, found = crowd(vit()), []
    wanted = answers(model)

    def work() -> None:
        handle = blocks(model)[2].register_forward_pre_hook(lambda *_: exec("raise SystemExit"))
        try:
            model(images(4))
        except SystemExit:
            handle.remove()
            found.extend(answers(model))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert same(found, wanted)


# A forward inside a forward.


@pytest.mark.parametrize("settings", [{}, {"deep": True}, {"deep": True, "zero_start": True}, {"read_from": 2}])
@pytest.mark.parametrize("index", [0, 1, 3])
def test_hooks_inside_a_block_call_models(index: int, settings: dict) -> None:
    """The same model and another one, with other adapters, disabled, and as a mixed batch."""
    student, teacher = crowd(vit(), **settings), crowd(build("Dinov2ForImageClassification", "Dinov2Config"))
    wanted, of_teacher = answers(student), answers(teacher)
    inside: list[bool] = []
    attention = bank_of(student).vit.attentions[index].attention

    def hook(*_: Any) -> None:
        handle.remove()
        active = student.active_adapter
        inside.append(same(answers(teacher), of_teacher) and same(answers(student), wanted))
        student.set_adapter(active)

    for number in range(2):
        student.set_adapter("ba"[number])
        handle = attention.register_forward_pre_hook(hook)
        with torch.no_grad():
            assert torch.equal(student(images(4)).logits, wanted[number])
    assert inside == [True] * (2 if "read_from" not in settings or index < 3 else 0)


class Distilled(nn.Module):
    """Calls its backbone a second time, by the function that is put into `again`."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = build("ViTModel", "ViTConfig")
        self.classifier = nn.Linear(32, 4)
        self.again: list[Callable[[torch.Tensor], Any]] = []

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.vit(pixels).last_hidden_state[:, 0]

    def forward(self, pixels: torch.Tensor) -> Any:
        first = self.classifier(self.features(pixels))
        return (first, *(again(pixels) for again in self.again))


def test_switching_inside_a_forward() -> None:
    base = Distilled().eval()
    model = crowd(base, modules_to_save=["classifier"])
    wanted = answers(model, lambda output: output[0])
    model.set_adapter("a")

    def logits(pixels: torch.Tensor) -> torch.Tensor:
        return base.classifier(base.features(pixels))

    def disabled(pixels: torch.Tensor) -> torch.Tensor:
        with model.disable_adapter():
            return logits(pixels)

    def mixed(pixels: torch.Tensor) -> torch.Tensor:
        with model.base_model.mixed_batch(NAMES):
            return logits(pixels)

    def other(pixels: torch.Tensor) -> torch.Tensor:
        model.set_adapter("b")
        try:
            return logits(pixels)
        finally:
            model.set_adapter("a")

    base.again = [logits, disabled, mixed, other, disabled, logits]
    order = [wanted[1], wanted[1], wanted[2], wanted[3], wanted[0], wanted[2], wanted[1]]
    with torch.no_grad():
        assert same(list(model(images(4))), order)
        found = model(images(4), adapter_names=["a"] * 4)
        assert same(list(found), order)
        found = model(images(4), adapter_names=NAMES)
        assert torch.equal(found[0], wanted[3]) and torch.equal(found[1], wanted[3])
        assert torch.equal(found[2], wanted[2]) and torch.equal(found[4], wanted[0])


def test_switching_between_two_blocks_is_refused() -> None:
    model = crowd(vit())
    wanted = answers(model)
    for switch in (lambda: model.set_adapter("b"), model.base_model.disable_adapter_layers):
        handle = blocks(model)[1].register_forward_hook(lambda *_, switch=switch: switch())
        with pytest.raises(UnsupportedOperationError, match="between two blocks of one forward, before block 2"):
            model(images(4))
        handle.remove()
        model.base_model.enable_adapter_layers()
        assert same(answers(model), wanted)


# What can be called.


def test_names_given_to_the_base_and_its_parts() -> None:
    model = crowd(vit())
    base, wanted = model.base_model.model, answers(model)[3]
    with torch.no_grad():
        assert torch.equal(model.get_base_model()(images(4), adapter_names=NAMES).logits, wanted)
        assert torch.equal(base.forward(images(4), adapter_names=NAMES).logits, wanted)
        features = base.vit(images(4), adapter_names=NAMES).last_hidden_state
        with model.base_model.mixed_batch(NAMES):
            torch.testing.assert_close(base.classifier(features[:, 0]), wanted)
            with pytest.raises(UnsupportedOperationError, match="4 names for a batch of 3"):
                base.classifier(features[:3, 0])


def test_names_given_to_a_model_of_transformers() -> None:
    model, config = vit(), prompts()
    model.add_adapter(config, "a")
    model.add_adapter(prompts(num_virtual_tokens=2), "b")
    generator = torch.Generator().manual_seed(4)
    for key, parameter in model.named_parameters():
        if "modules_to_save" in key or "gated_prompt_" in key:
            parameter.data.add_(2 * torch.rand(parameter.shape, generator=generator))
    model.eval()
    with torch.no_grad():
        alone = {}
        for name in "ab":
            model.set_adapter(name)
            alone[name] = model(images(4)).logits
        found = model(images(4), adapter_names=["a", "b", "b", "a"]).logits
    for row, name in enumerate("abba"):
        torch.testing.assert_close(found[row], alone[name][row])


def clip() -> nn.Module:
    text = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    text |= {"vocab_size": 50, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2}
    vision = {**{k: v for k, v in text.items() if k in ("hidden_size", "num_attention_heads", "intermediate_size")}}
    vision |= {"num_hidden_layers": 3, "image_size": 32, "patch_size": 8}
    return build("CLIPModel", "CLIPConfig", text_config=text, vision_config=vision, projection_dim=16)


def test_texts_beside_a_mixed_batch_stay_whole() -> None:
    model = crowd(clip())
    ids = torch.randint(3, 48, (4, 6), generator=torch.Generator().manual_seed(3))
    for texts in (ids, ids[:3]):  # as many as there are images, or not
        found = answers_of_clip(model, texts)
        assert found["mixed"].shape == (4, len(texts))
        for row, name in enumerate(NAMES):
            torch.testing.assert_close(found["mixed"][row], found[name][row], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        features = [model.get_image_features(pixel_values=images(4), adapter_names=NAMES)]
        for name in NAMES:
            model.set_adapter(name) if name != "__base__" else model.base_model.disable_adapter_layers()
            features.append(model.get_image_features(pixel_values=images(4)))
            model.base_model.enable_adapter_layers()
    mixed, *alone = (getattr(each, "pooler_output", each) for each in features)
    for row, each in enumerate(alone):
        torch.testing.assert_close(mixed[row], each[row], rtol=1e-4, atol=1e-5)


def test_trained_heads_of_texts_in_a_mixed_batch() -> None:
    """Text i need not belong to image i, so its adapter is unknown; heads of images are selected as ever."""
    ids = torch.randint(3, 48, (4, 6), generator=torch.Generator().manual_seed(3))
    found = answers_of_clip(crowd(clip(), modules_to_save=["visual_projection"]), ids)
    for row, name in enumerate(NAMES):
        torch.testing.assert_close(found["mixed"][row], found[name][row], rtol=1e-4, atol=1e-5)
    model = crowd(clip(), modules_to_save=["text_projection"])
    inputs = {"pixel_values": images(4), "input_ids": ids}
    with torch.no_grad():
        wanted = model(**inputs).logits_per_image
        with pytest.raises(UnsupportedOperationError, match=r"trained copies of text_projection, which takes texts"):
            model(**inputs, adapter_names=NAMES)
        few = {**inputs, "input_ids": ids[:3]}  # one adapter: no doubt, however many texts there are
        same_adapter = model(**few, adapter_names=["a"] * 4).logits_per_image
    torch.testing.assert_close(same_adapter, wanted[:, :3], rtol=1e-4, atol=1e-5)


def answers_of_clip(model: PeftModel, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    inputs, found = {"pixel_values": images(4), "input_ids": ids}, {}
    with torch.no_grad():
        for name in "ba":
            model.set_adapter(name)
            found[name] = model(**inputs).logits_per_image
        with model.disable_adapter():
            found["__base__"] = model(**inputs).logits_per_image
        found["mixed"] = model(**inputs, adapter_names=NAMES).logits_per_image
    return found


class Tower(nn.Module):
    """A root that runs the blocks itself, with more inputs, and returns `kind` of its last tokens and all states."""

    def __init__(self, kind: Callable[[torch.Tensor, list[torch.Tensor]], Any]) -> None:
        super().__init__()
        inner = build("ViTModel", "ViTConfig")
        self.embeddings, self.layers, self.kind = inner.embeddings, bank_free(inner), kind

    def forward(self, pixels: torch.Tensor, extra: Any = None, **others: Any) -> Any:
        tokens = self.embeddings(pixels)
        states = [tokens]
        for block in self.layers:
            output = block(tokens)
            tokens = output[0] if isinstance(output, tuple) else output
            states.append(tokens)
        return self.kind(tokens, states)


def bank_free(model: nn.Module) -> nn.ModuleList:
    return next(module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == 4)


@pytest.mark.parametrize(
    "extra",
    [torch.zeros(4, 5), [1, 2, 3, 4], {"boxes": [torch.zeros(4)] * 4}, [torch.zeros(2)] * 4],
    ids=["tensor", "list", "dict", "tensors"],
)
def test_what_is_not_known_to_be_of_images_is_refused(extra: Any) -> None:
    model = crowd(Tower(lambda tokens, states: tokens), modules_to_save=[])
    with torch.no_grad():
        model(images(4), extra=extra)
        for options in ((images(4), extra), (images(4),)):
            named = {} if len(options) == 2 else {"extra": extra}
            with pytest.raises(UnsupportedOperationError, match="the argument 'extra' belongs to which image"):
                model(*options, **named, adapter_names=NAMES)
        model(images(4), extra=torch.tensor(2.0), more=3, adapter_names=NAMES)
        model(images(4), bool_masked_pos=torch.zeros(4, 16), adapter_names=NAMES)
        model(images(4), extra=extra, adapter_names=["a"] * 4)  # one forward, so nothing is split


# What is returned.


class Named(NamedTuple):
    last: torch.Tensor
    states: list[torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Record:
    last: torch.Tensor
    states: list[torch.Tensor]


@dataclasses.dataclass(slots=True)
class Slots:
    last: torch.Tensor
    states: list[torch.Tensor]


class OneSlot:
    __slots__ = "states"  # noqa: PLC0205

    def __init__(self, last: torch.Tensor, states: list[torch.Tensor]) -> None:
        self.states = states


class Plain:
    def __init__(self, last: torch.Tensor, states: list[torch.Tensor]) -> None:
        self.last, self.states, self.me = last, states, self


KINDS: dict[str, Callable[[torch.Tensor, list[torch.Tensor]], Any]] = {
    "tuple": lambda last, states: (last, tuple(states)),
    "NamedTuple": Named,
    "dataclass": Record,
    "object": Plain,
    "namespace": lambda last, states: SimpleNamespace(last=last, more={"states": [states]}),
    "mapping": lambda last, states: MappingProxyType({"a": Named(last, states)}),
    "deque": lambda last, states: deque([last, Record(last, states)]),
    "slots": Slots,
    "one slot": OneSlot,
    "set": lambda last, states: frozenset(states),
    "stacked": lambda last, states: (last, torch.stack(states[1:3])),
    "transposed": lambda last, states: Record(last, [state.transpose(1, 2) for state in states]),
    "dict of lists": lambda last, states: {"x": [last, {"y": states}]},
}


def tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (dict, MappingProxyType)):
        yield from (each for part in value.values() for each in tensors(part))
    elif isinstance(value, (tuple, list, deque, frozenset)):
        yield from (each for part in value for each in tensors(part))
    elif hasattr(type(value), "__slots__"):
        yield from (each for name in ("last", "states") for each in tensors(getattr(value, name, ())))
    else:
        yield from (each for name, part in vars(value).items() if name != "me" for each in tensors(part))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@torch.no_grad()
def test_no_prompts_in_any_container(kind: Callable[..., Any]) -> None:
    base = Tower(kind)
    plain = base(images())
    model = get_peft_model(base, prompts(modules_to_save=[]))
    found = model.eval()(images())
    assert type(found) is type(plain)
    assert [state.shape for state in tensors(found)] == [state.shape for state in tensors(plain)]
    if kind not in (KINDS["object"], KINDS["set"]):  # a circle, and parts without an order
        check(model, images())


@torch.no_grad()
def test_generators() -> None:
    model = get_peft_model(Tower(lambda last, states: iter(states)), prompts(modules_to_save=[])).eval()
    assert {state.shape[1] for state in model(images())} == {17}

    class Lazy(Tower):
        def forward(self, pixels: torch.Tensor) -> Iterator[torch.Tensor]:
            tokens = self.embeddings(pixels)
            for block in self.layers:
                tokens = block(tokens)
                yield tokens

    model = get_peft_model(Lazy(tuple), prompts(modules_to_save=[])).eval()
    with pytest.raises(UnsupportedOperationError, match="outside of the forward"):
        list(model(images()))
    model = get_peft_model(Lazy(tuple), prompts(modules_to_save=[], deep=True)).eval()
    assert {state.shape[1] for state in model(images())} == {17}


@torch.no_grad()
def test_a_method_that_reads_the_blocks_itself() -> None:
    class Meta(Tower):
        def get_intermediate_layers(self, pixels: torch.Tensor) -> list[torch.Tensor]:
            return Tower.forward(self, pixels)[1]

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = Meta(lambda last, states: (last, states))

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return torch.stack(self.backbone.get_intermediate_layers(pixels)[1:]).mean()

    base = Meta(lambda last, states: (last, states))
    model = get_peft_model(base, prompts(modules_to_save=[])).eval()
    model(images())
    with pytest.raises(UnsupportedOperationError, match="outside of the forward"):
        base.get_intermediate_layers(images())
    with model.disable_adapter():
        assert {state.shape[1] for state in base.get_intermediate_layers(images())} == {17}
    with pytest.raises(UnsupportedOperationError, match="outside of the forward"):
        get_peft_model(Reader(), prompts(modules_to_save=[])).eval()(images())


@pytest.mark.parametrize("settings", [{}, {"deep": True}, {"read_from": 1}])
@torch.no_grad()
def test_forward_in_place_of_the_call(settings: dict) -> None:
    model = get_peft_model(vit(), prompts(**settings)).eval()
    root = model.base_model.model
    assert torch.equal(root.forward(images()).logits, model(images()).logits)
    for module in (root, root.vit):
        if "read_from" in settings:
            with pytest.raises(UnsupportedOperationError, match="above block 1"):
                module.forward(images(), output_hidden_states=True)
            continue
        found, wanted = (call(images(), output_hidden_states=True) for call in (module.forward, module))
        assert same(found.hidden_states, wanted.hidden_states)
        assert {state.shape[1] for state in found.hidden_states} == {17}
    assert list(inspect.signature(root.forward).parameters) == list(
        inspect.signature(type(root).forward.__get__(root)).parameters
    )


@torch.no_grad()
def test_copies_have_their_own_scope() -> None:
    model = crowd(vit())
    wanted = answers(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        bank_of(model).gated_prompt_tokens["a"].data.mul_(2)
        assert same(answers(other), wanted)
        bank_of(model).gated_prompt_tokens["a"].data.div_(2)
    restored = model.unload()
    assert not [name for name, module in restored.named_modules() if "forward" in vars(module)]


# What is said of errors.


class MineError(RuntimeError):
    pass


@pytest.mark.parametrize(
    "error", [MineError("size of tensor"), RuntimeError("NCCL timeout"), TypeError("shape"), ValueError("stop early")]
)
def test_errors_that_are_not_of_the_prompts(error: Exception) -> None:
    model, calls = crowd(vit()), []

    def fail(*_: Any) -> None:
        calls.append(1)
        raise error

    body(model).register_forward_pre_hook(fail)
    with pytest.raises(type(error)) as caught:
        model(images())
    assert caught.value is error and calls == [1] and not hasattr(error, "__notes__")


def test_errors_of_the_prompts_get_a_note() -> None:
    class Fixed(Tower):
        """Adds a table of its own length to the tokens of a block."""

        def forward(self, pixels: torch.Tensor, **others: Any) -> torch.Tensor:
            tokens, grads = self.embeddings(pixels), torch.is_grad_enabled()
            for block in self.layers:
                tokens = block(tokens) + torch.zeros(17, 32)
            modes.append(grads)
            return tokens

    modes: list[bool] = []
    model = get_peft_model(Fixed(tuple), prompts(modules_to_save=[])).eval()
    with pytest.raises(RuntimeError, match=r"size of tensor a \(20\)") as caught:
        model(images())
    assert not isinstance(caught.value, GatedPromptError)
    (note,) = caught.value.__notes__
    assert "fails with 3 prompts among its 17 tokens, but runs without them" in note
    assert modes == [True]
    with pytest.raises(ValueError, match=r"image size \(64\*64\)") as caught, torch.no_grad():
        model(images(size=64))
    assert not getattr(caught.value, "__notes__", None)  # fails without prompts too
    assert LOCAL.forward is None


def test_blocks_that_were_replaced_after_the_adapter_was_added() -> None:
    model = get_peft_model(vit(), prompts()).eval()
    for block in blocks(model):
        block.forward = type(block).forward.__get__(block)
    with pytest.raises(UnsupportedOperationError, match="Add the adapter last"):
        model(images())
    model = get_peft_model(vit(), prompts()).eval()
    block = blocks(model)[2]
    block.forward = type(block).forward.__get__(block)
    with pytest.raises(ArchitectureError, match="is called where block 2 was expected"):
        model(images())
