"""The server that several test files ask."""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from peft import get_peft_model

import gated_prompt
from gated_prompt import GatedPromptConfig
from gated_prompt.predictor import Predictor, read_predictor
from gated_prompt.shipped import SHIPPED_BACKBONE
from helpers.hub_stand_in import HubStandIn

if TYPE_CHECKING:
    from helpers.running_server import Running

NEEDED = ("ray", "fastapi", "prometheus_client", "python_multipart", "psutil", "requests")
ADAPTERS = Path(__file__).parent / "adapters"  # gated prompts of three tasks, trained briefly
BLOCKS = {"early": (2, 8), "late": (5, 9)}  # insert_at and read_from of further adapters


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone, adapters of several structures, and an engine of two of them. Not to be changed."""
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if not importlib.util.find_spec(name)]
    if missing:
        pytest.skip(f"an export needs {', '.join(missing)}: pip install -e '.[onnx]'")
    from helpers.engines import written_once

    base = tmp_path_factory.getbasetemp()
    return written_once(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)


@pytest.fixture(scope="session")
def hub() -> Iterator[HubStandIn]:
    with HubStandIn() as one:
        one.add("someone/shapes", ADAPTERS / "shapes")
        yield one


@pytest.fixture(scope="session")
def server(hub: HubStandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator["Running"]:
    """Two replicas, which share nothing but the folder of adapters."""
    missing = [name for name in NEEDED if not importlib.util.find_spec(name)]
    if missing:
        pytest.skip(f"the server needs {', '.join(missing)}: pip install -e '.[serve]'")
    from helpers.running_server import running_server

    root = tmp_path_factory.mktemp("served")
    shutil.copytree(ADAPTERS, root / "adapters")
    for name, blocks in BLOCKS.items():
        write_adapter(root / "adapters" / name, *blocks)
    (root / "adapters" / "notes").mkdir()  # left out, by name
    shutil.copytree(ADAPTERS, root / "allowed")
    options = {"backbone": SHIPPED_BACKBONE, "replicas": 2, "cpus": 0.5, "queue": 12, "batch_wait_ms": 60}
    options |= {"upload_mb": 1, "megapixels": 1, "upload_seconds": 3}
    allow = [str(root / "allowed"), "someone/shapes"]
    environment = {"GATED_PROMPT_TOKEN": "open sesame", "HF_ENDPOINT": hub.url, "HF_HOME": str(root / "hub")}
    with running_server(root, options, allow, HF_HUB_OFFLINE="0", **environment) as one:
        yield one


def write_adapter(folder: Path, insert_at: int, read_from: int) -> None:
    """Random prompts between these blocks, and a head that reads the mean of the patches."""
    predictor = Predictor(["a", "b", "c"], read_predictor(ADAPTERS / "shapes").preparation, reads="mean")
    config = GatedPromptConfig(num_virtual_tokens=4, gate_init=0.0, insert_at=insert_at, read_from=read_from)
    torch.manual_seed(read_from)
    gated_prompt.save(get_peft_model(predictor.load_base(SHIPPED_BACKBONE), config), folder)
    predictor.write(folder)
