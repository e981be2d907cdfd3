"""Compiled without a graph break, and exported with a batch size that stays free."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch._dynamo.testing import CompileCounterWithBackend

from gated_prompt import GatedPromptConfig
from helpers.models import bank_of, dinov2, images, vit

ZERO_START = {"deep": True, "zero_start": True}
SETTINGS = {
    "gated": {},
    "deep": {"deep": True},
    "pooled": {"pooling": "patches"},
    "read": {"read_from": 1},
    "zero": ZERO_START,
}


def make(base=vit, **settings: object) -> PeftModel:
    torch.manual_seed(0)
    model = get_peft_model(
        base(num_hidden_layers=3), GatedPromptConfig(num_virtual_tokens=3, prompt_dropout=0.0, **settings)
    )
    for parameter in bank_of(model).parameters():
        parameter.data.uniform_(0.5, 1.5)
    return model


def temperatures(model: PeftModel) -> torch.Tensor:
    return bank_of(model).gated_prompt_temperatures["default"]


@pytest.mark.parametrize(
    ("settings", "training"),
    [(SETTINGS["gated"], False), *((settings, True) for settings in SETTINGS.values())],
    ids=["gated-eval", *(f"{name}-train" for name in SETTINGS)],
)
def test_one_graph_equal_to_eager_with_temperatures_outside_their_range(settings: dict, training: bool) -> None:
    model = make(**settings).train(training)
    eager, counter = copy.deepcopy(model), CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for step in range(2):
        found = []
        for called, owner in ((compiled, model), (eager, eager)):
            temperatures(owner).data[0], temperatures(owner).data[1] = -1.0 - step, 50.0
            logits = called(pixel_values=images(seed=step)).logits
            logits.square().mean().backward()
            found.append(logits.detach())
        torch.testing.assert_close(*found)
        assert temperatures(model)[:2].tolist() == temperatures(eager)[:2].tolist() == [pytest.approx(0.01), 10.0]
    assert counter.frame_count == 1
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, eager.get_parameter(name).grad)


def test_switching_and_disabling_are_seen_by_the_compiled_model() -> None:
    model = make().eval()
    model.add_adapter("other", GatedPromptConfig(num_virtual_tokens=2, read_from=0))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        for name in ("default", "other", "default"):
            model.set_adapter(name)
            torch.testing.assert_close(compiled(pixel_values=images()).logits, model(pixel_values=images()).logits)
        with model.disable_adapter():
            torch.testing.assert_close(
                compiled(pixel_values=images()).logits, vit(num_hidden_layers=3)(pixel_values=images()).logits
            )


class Logits(torch.nn.Module):
    def __init__(self, model: PeftModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixel_values).logits


@pytest.mark.parametrize("base", [vit, dinov2])
def test_export_with_a_free_batch_size(base) -> None:
    model = make(base).eval()
    temperatures(model).data[0] = 50.0
    shapes = {"pixel_values": {0: torch.export.Dim("batch")}}
    with torch.no_grad():
        wanted = model(pixel_values=images(3)).logits
        program = torch.export.export(Logits(model), (images(2, seed=9),), dynamic_shapes=shapes)
        torch.testing.assert_close(program.module()(images(3)), wanted)


@pytest.mark.parametrize("settings", [{}, {"read_from": 1}, ZERO_START], ids=["gated", "read", "zero"])
def test_onnx(settings: dict, tmp_path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is needed for the ONNX export")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is needed to run the ONNX file")
    model, file = make(**settings).eval(), tmp_path / "model.onnx"
    exported = torch.onnx.export(
        Logits(model).eval(),
        (images(2, seed=9),),
        file,
        dynamo=True,
        input_names=["pixel_values"],
        output_names=["logits"],
        dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
        verbose=False,
    )
    found = runtime.InferenceSession(file).run(None, {"pixel_values": images(3).numpy()})[0]
    with torch.no_grad():
        wanted = model(pixel_values=images(3)).logits
    torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-4, atol=1e-5)
    blocks = {int(part) for name in exported.model.graph.initializers for part in name.split(".") if part.isdigit()}
    assert blocks == set(range(settings.get("read_from", 2) + 1))  # what does not run is not in the file
