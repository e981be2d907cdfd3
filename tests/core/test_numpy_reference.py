"""Against an independent float64 reference: insertion further up, chosen gates, temperatures of some blocks."""

import numpy as np
import pytest
import torch
from peft import get_peft_model

from gated_prompt import GatedPromptConfig
from helpers.golden_cases import Case
from helpers.models import bank_of
from helpers.numpy_reference import logits as reference


def test_the_reference_agrees_with_the_official_code() -> None:
    case = Case("moco_gated_temp", torch.float64)
    state = {k: v.numpy() for k, v in case.state.items()}
    pixels, _ = case.batch(0)
    found = [
        reference(
            image,
            state,
            state["enc.prompt_embeddings"][0],
            dict(enumerate(state["enc.gate_logit"])),
            dict(enumerate(state["enc.temp"])),
        )
        for image in pixels.numpy()
    ]
    np.testing.assert_allclose(found, case.expected["out.logits"].numpy(), rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("insert_at", "gated_blocks", "read_from"),
    [
        *[(0, None, None), (0, [0, 3], None), (1, [2], None), (2, None, None), (3, None, None), (1, [1, 2, 3], None)],
        *[(0, None, 2), (1, None, 2), (0, [0, 1], 1), (2, None, 2), (0, None, 3), (0, None, 0)],
    ],
)
def test_insertion_block_chosen_gates_and_read_block(
    insert_at: int, gated_blocks: list[int] | None, read_from: int | None
) -> None:
    case = Case("moco_gated_temp", torch.float64)
    config = GatedPromptConfig(
        num_virtual_tokens=5,
        insert_at=insert_at,
        read_from=read_from,
        gated_blocks=gated_blocks,
        prompt_dropout=0.0,
    )
    last = 3 if read_from is None else read_from
    model = get_peft_model(case.base(), config).eval()
    bank = bank_of(model)
    generator = torch.Generator().manual_seed(3)
    prompts = torch.randn(5, 32, generator=generator, dtype=torch.float64)
    bank.gated_prompt_tokens["default"].data[0] = prompts
    blocks = gated_blocks if gated_blocks is not None else list(range(insert_at, last))
    gate_logits = torch.linspace(-1.5, 2.0, max(len(blocks), 1), dtype=torch.float64)[: len(blocks)]
    if blocks:
        bank.gated_prompt_gate_logits["default"].data.copy_(gate_logits)
    temperatures = torch.linspace(0.5, 2.5, last + 1 - insert_at, dtype=torch.float64)
    bank.gated_prompt_temperatures["default"].data.copy_(temperatures)

    pixels, _ = case.batch(1)
    state = {k: v.numpy() for k, v in case.state.items()}
    wanted = [
        reference(
            image,
            state,
            prompts.numpy(),
            dict(zip(blocks, gate_logits.tolist(), strict=True)),
            dict(zip(range(insert_at, last + 1), temperatures.tolist(), strict=True)),
            insert_at=insert_at,
            read_from=read_from,
        )
        for image in pixels.numpy()
    ]
    with torch.no_grad():
        found = model(pixels).logits.numpy()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-10)
