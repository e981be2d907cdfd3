"""Any number of threads may call one model in eval mode, while others load and remove adapters."""

import copy
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model

import gated_prompt
from gated_prompt import GatedPromptConfig, GatedPromptError, find_vision_transformer
from gated_prompt.tuner.request import LOCAL
from helpers.models import bank_of, dinov2, images, in_sequence, vit

PACKAGE = str(Path(gated_prompt.__file__).parent)


def crowd() -> PeftModel:
    model = get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=3, gate_init=0.0), adapter_name="a")
    model.add_adapter("b", GatedPromptConfig(num_virtual_tokens=5, gate_init=0.0))
    model.add_adapter("c", GatedPromptConfig(num_virtual_tokens=3, gate_init=0.0, temperature_init=2.0))
    for number, tokens in enumerate(bank_of(model).gated_prompt_tokens.values()):
        torch.nn.init.normal_(tokens, std=1.0 + number)
    return model.eval()


def together(work: list[Callable[[], None]], rounds: int) -> list[str]:
    """Run each piece of work in its own thread, `rounds` times; return the errors."""
    faults: list[str] = []
    start = threading.Barrier(len(work))

    def run(piece: Callable[[], None]) -> None:
        start.wait()
        for _ in range(rounds):
            try:
                piece()
            except Exception as error:
                faults.append(repr(error))

    threads = [threading.Thread(target=run, args=(piece,)) for piece in work]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # many switches, so that a shared state would show
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    return faults


def call(model: PeftModel, pixels: torch.Tensor, **options: object) -> Callable[[], None]:
    """A call that must always return the same as now."""
    with torch.no_grad():
        wanted = model(pixel_values=pixels, **options).logits

    def again() -> None:
        with torch.no_grad():
            torch.testing.assert_close(model(pixel_values=pixels, **options).logits, wanted, rtol=1e-5, atol=1e-5)

    return again


def test_forwards_of_two_sizes_and_mixed_batches() -> None:
    model = crowd()
    size = {"interpolate_pos_encoding": True}
    work = [
        call(model, images(2), **size),
        call(model, images(3, size=48), **size),
        call(model, images(4), adapter_names=["a", "b", "__base__", "c"], **size),
        call(model, images(3, size=48), adapter_names=["c", "a", "c"], **size),
    ]
    assert together(work, 40) == []
    assert model.active_adapter == "a"
    assert not bank_of(model)._disable_adapters


def test_adapters_come_and_go_beside_the_forwards(tmp_path: Path) -> None:
    model = crowd()
    model.save_pretrained(tmp_path)

    def come_and_go() -> None:
        model.load_adapter(tmp_path / "c", "guest", torch_device="cpu")
        model.delete_adapter("guest")

    work = [call(model, images(2)), call(model, images(3), adapter_names=["c", "a", "b"]), come_and_go]
    assert together(work, 15) == []
    assert sorted(model.peft_config) == ["a", "b", "c"]


def test_an_error_leaves_nothing_behind() -> None:
    model = crowd()
    again = call(model, images(2))
    with pytest.raises(GatedPromptError):
        model(pixel_values=images(2), adapter_names=["a"])
    block = find_vision_transformer(model.base_model.model).blocks[1]
    handle = block.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(pixel_values=images(2))
    handle.remove()
    assert LOCAL.forward is LOCAL.request is None
    again()


def test_two_models_in_one_another() -> None:
    """A teacher that a hook of the student calls in the middle of its forward."""
    student, teacher = crowd(), get_peft_model(dinov2(), GatedPromptConfig(num_virtual_tokens=2, deep=True)).eval()
    of_student, of_teacher = call(student, images(2)), call(teacher, images(3))
    block = find_vision_transformer(student.base_model.model).blocks[2]
    handle = block.register_forward_pre_hook(lambda *_: of_teacher())
    of_student()
    handle.remove()


def test_replicas_of_data_parallel_are_refused() -> None:
    replica = copy.copy(vit())
    model = get_peft_model(replica, GatedPromptConfig(num_virtual_tokens=2)).eval()
    replica._is_replica = True
    with pytest.raises(GatedPromptError, match="DistributedDataParallel"):
        model(pixel_values=images(2))


@torch.no_grad()
def test_a_forward_is_short() -> None:
    """A stranger should be able to follow a forward: few files, few calls."""
    model = get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=3)).eval()
    pixels, files, calls = images(2), set(), 0
    model(pixel_values=pixels)

    def count(frame, event: str, argument: object) -> None:
        nonlocal calls
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            files.add(Path(frame.f_code.co_filename).name)
            calls += 1

    sys.setprofile(count)
    try:
        model(pixel_values=pixels)
    finally:
        sys.setprofile(None)
    print(f"{calls} calls into {sorted(files)}")
    assert len(files) <= 4
    more = len(find_vision_transformer(model.base_model.model).ancestors) - 2  # 4.57 has an encoder, its PEFT one hook
    assert calls <= 80 + 6 * more


def test_blocks_called_out_of_order_are_refused() -> None:
    for change in ("skip", "twice"):
        model = get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=3)).eval()
        path, _, name = find_vision_transformer(model.base_model.model).tower.path.rpartition(".")
        holder = model.base_model.model.get_submodule(path)
        layers = getattr(holder, name)
        order = [0, 2, 3] if change == "skip" else [0, 1, 1, 2, 3]
        setattr(holder, name, torch.nn.ModuleList([layers[i] for i in order]))
        with pytest.raises(GatedPromptError, match=r"ViTLayer \d is called where block \d was expected"):
            model(pixel_values=images(2))


@torch.no_grad()
def test_hidden_states_by_keyword() -> None:
    model = get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=3)).eval()
    wanted = model(pixel_values=images(2)).logits
    for block in find_vision_transformer(model.base_model.model).blocks:
        forward = type(block).__call__

        class ByKeyword(type(block)):
            def __call__(self, hidden_states, *args, forward=forward, **kwargs):
                return forward(self, hidden_states=hidden_states)

        block.__class__ = ByKeyword
    assert torch.equal(model(pixel_values=images(2)).logits, wanted)
    with in_sequence(model):
        torch.testing.assert_close(model(pixel_values=images(2)).logits, wanted)
