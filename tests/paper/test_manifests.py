"""The manifests are those of the code, and their numbers those of the paper's Table 5."""

import json

import pytest

import manifests
from paper.grids import TABLES
from paper.presets import TABLE_5


@pytest.mark.parametrize("table", TABLES)
def test_committed_manifests_are_current(table) -> None:
    text = (manifests.FOLDER / f"{table}.json").read_text()
    assert text == manifests.text(table), f"{table}.json is old. Regenerate it: python tools/manifests.py"
    assert json.loads(text) == json.loads(json.dumps(manifests.manifest(table)))


def test_a_cell_has_its_settings_and_their_origin() -> None:
    made = manifests.manifest("vtab")
    assert made["rows"]["moco"]["gated"]["cells"]["oxford_iiit_pet"] == {
        **{"batch_size": 64, "num_virtual_tokens": 100, "learning_rate": 1.0, "gate_init": -1},
    }
    assert set(made["origin_of_cells"]) == {"batch_size", "num_virtual_tokens", "learning_rate", "gate_init"}
    assert all(setting["origin"] for setting in made["every_cell"].values())
    assert made["rows"]["mae"]["full"]["search"]["learning_rates"] == (0.0001, 0.0005, 0.001, 0.005)
    assert made["rows"]["mae"]["deep"]["not_comparable"] and not made["rows"]["mae"]["gated"]["not_comparable"]
    tasks = {task for rows in TABLES.values() for task in rows.tasks}
    assert tasks == set(TABLE_5)
