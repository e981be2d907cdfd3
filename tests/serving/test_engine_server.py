# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""An engine behind the server: the answers of the models, tasks that come and go as files, and refusals."""

import io
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from gated_prompt import AdapterNameError, GatedPromptError
from gated_prompt.images import decode
from gated_prompt.predictor import Predictor
from helpers.engines import CROP, TEMPERATURE, alone
from helpers.models import images

pytest.importorskip("ray", reason="the server needs it: pip install -e '.[serve]'")
pytest.importorskip("fastapi", reason="the server needs it: pip install -e '.[serve]'")

import requests

from gated_prompt.engine.pool import EnginePool, load_engine
from gated_prompt.engine.task_file import convert, place_of
from gated_prompt.engine.task_folder import TaskFolder
from gated_prompt.serving.cache import PoolFullError
from gated_prompt.serving.settings import Settings
from helpers.running_server import Running, running_server

TOKEN = {"Authorization": "Bearer open sesame"}


def png(seed: int) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


IMAGES = [png(seed) for seed in range(3)]


@pytest.fixture
def engine(engines: Path, tmp_path: Path) -> Path:
    """A copy that a test may change, with three tasks."""
    folder = Path(shutil.copytree(engines / "gated", tmp_path / "engine"))
    convert(engines / "trees", "trees", place_of(folder, "trees"), json.loads((folder / "engine.json").read_text()))
    return folder


def pool(folder: Path, memory: int = 10**6) -> EnginePool:
    return EnginePool(folder, memory, image_side=1024, threads=1)


def ask(shared: EnginePool, tasks: TaskFolder, names: list[str], pixels: torch.Tensor) -> list[torch.Tensor]:
    holds = [shared.hold(tasks.find(name)) for name in names]
    found = shared.logits(pixels, [hold.__enter__() for hold in holds])
    for hold in holds:
        hold.__exit__(None, None, None)
    return found


def test_tasks_are_loaded_when_asked_for_and_the_least_recently_used_leave(engines: Path, engine: Path) -> None:
    tasks, pixels = TaskFolder(engine), images(1)
    with pool(engine).hold(tasks.find("cars")) as cars:  # five classes: the largest
        shared = pool(engine, 2 * cars.nbytes)
    for name in ("birds", "cars", "trees", "birds"):
        np.testing.assert_allclose(
            ask(shared, tasks, [name], pixels)[0], alone(engines, name, pixels[0]), rtol=1e-4, atol=1e-4
        )
        assert 0 < shared.nbytes <= shared.memory
    assert len(shared) == 2
    with (
        shared.hold(tasks.find("cars")),
        shared.hold(tasks.find("birds")),
        pytest.raises(PoolFullError, match="in use"),
        shared.hold(tasks.find("trees")),
    ):
        pass
    shared.forget(tasks.find("cars"))
    assert len(shared) == 1
    small = pool(engine, 100)
    with pytest.raises(GatedPromptError, match="more than the limit of 100"), small.hold(tasks.find("cars")):
        pass


def test_a_task_that_is_replaced_is_read_again_and_calls_keep_the_old_one(engines: Path, engine: Path) -> None:
    tasks, shared, pixels = TaskFolder(engine), pool(engine), images(1)
    with shared.hold(tasks.find("birds")) as old:
        shutil.copyfile(tasks.find("cars"), engine / "new")
        (engine / "new").replace(tasks.find("birds"))
        (found,) = ask(shared, tasks, ["birds"], pixels)
        np.testing.assert_allclose(found, alone(engines, "cars", pixels[0]), rtol=1e-4, atol=1e-4)
        (found,) = shared.logits(pixels, [old])
        np.testing.assert_allclose(found, alone(engines, "birds", pixels[0]), rtol=1e-4, atol=1e-4)


def rewrite(path: Path, told: dict[str, object] | None = None, **tensors: np.ndarray) -> None:
    """The same file with other metadata or tensors."""
    with safe_open(path, "np") as file:
        about = json.loads(file.metadata()["task"]) | (told or {})
        found = {key: file.get_tensor(key) for key in file.keys()} | tensors  # noqa: SIM118
    save_file(found, path, {"task": json.dumps(about)})


HUGE = np.float32([[3e38], [-3e38], [3e38]]).repeat(32, 1)
DAMAGE = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-9]), "is damaged"),
    "no metadata": (lambda path: save_file({"bias": np.zeros(3, np.float32)}, path), "is damaged"),
    "another backbone": (lambda path: rewrite(path, {"backbone_sha256": "0" * 64}), "another backbone"),
    "another structure": (lambda path: rewrite(path, prompts=np.zeros((1, 9, 32), np.float32)), "as prompts, and"),
    "half precision": (lambda path: rewrite(path, bias=np.zeros(3, np.float16)), "has F16"),
    "not finite": (lambda path: rewrite(path, bias=np.full(3, np.nan, np.float32)), "not finite"),
    "scores too large": (lambda path: rewrite(path, weight=HUGE, bias=abs(HUGE[:, 0])), "not finite"),
    "names": (lambda path: rewrite(path, {"names": [1, 2, 3]}), "a list of names"),
    "problem": (lambda path: rewrite(path, {"problem": "guess"}), "problem is 'guess'"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_file_that_cannot_be_used_is_refused_in_one_sentence(engine: Path, kind: str) -> None:
    damage, message = DAMAGE[kind]
    tasks, shared = TaskFolder(engine), pool(engine)
    damage(tasks.find("birds"))
    with pytest.raises(GatedPromptError, match=message), shared.hold(tasks.find("birds")):
        pass
    assert (shared.nbytes, len(shared)) == (0, 0)
    if "finite" not in message:  # values are not read to list the tasks
        assert message in tasks.skipped()["birds.safetensors"]


def test_names_that_lead_nowhere(engine: Path) -> None:
    shutil.copyfile(place_of(engine, "birds"), place_of(engine, "v1.2"))
    tasks = TaskFolder(engine)
    assert "no name for an adapter" in tasks.skipped()["v1.2.safetensors"]
    for name in ("v1.2", "fish", "../adapters/birds", ""):
        with pytest.raises(AdapterNameError):
            tasks.find(name)
    assert [one.name for one in tasks.describe_all()] == ["birds", "cars", "trees"]


def test_what_is_no_engine_is_refused_before_anything_starts(engine: Path, tmp_path: Path) -> None:
    from gated_prompt.cli.serve import main

    for arguments, message in (
        (["--engine", str(tmp_path / "none")], "is missing. Export the engine again"),
        (["--engine", str(engine), "--adapters", str(tmp_path)], "Leave out --backbone and --adapters"),
        (["--engine", str(engine), "--prefetch", "fish"], "no adapter is named 'fish'"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(arguments)
    with pytest.raises(GatedPromptError, match=r"The limit is 30. Raise --image_side"):
        load_engine(Settings(engine=str(engine), image_side=30))
    (engine / "engine.onnx").write_bytes(b"\x08")
    with pytest.raises(GatedPromptError, match="no graph that onnxruntime takes"):
        load_engine(Settings(engine=str(engine)))


@pytest.fixture(scope="module")
def server(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("engine")
    shutil.copytree(engines / "gated", root / "engine")
    for name in ("trees", "cells"):
        shutil.copytree(engines / name, root / "allowed" / name)
    about = json.loads((root / "engine" / "engine.json").read_text())
    convert(engines / "trees", "trees", root / "allowed" / "trees.safetensors", about)
    options = {"engine": root / "engine", "prefetch": "birds", "queue": 40, "batch_wait_ms": 50}
    environment = {"GATED_PROMPT_TOKEN": "open sesame"}
    with running_server(root, options, [str(root / "allowed")], **environment) as one:
        yield one


def expected(engines: Path, name: str, data: bytes) -> dict[str, float]:
    """Probabilities of the model of PyTorch."""
    pixels = Predictor(["a"], CROP).transform()(decode(data))
    shares = torch.from_numpy(alone(engines, name, pixels) / TEMPERATURE).softmax(-1)
    return {f"{name} {place}": float(share) for place, share in enumerate(shares)}


def shares(answer: dict[str, object]) -> dict[str, float]:
    return {one["name"]: one["score"] for one in answer["predictions"]}


def put(server: Running, name: str, source: Path, **headers: str) -> requests.Response:
    url = f"{server.url}/v1/adapters/{name}"
    return requests.put(url, json={"source": str(source)}, headers=TOKEN | headers, timeout=60)


def test_a_server_says_what_the_models_say(server: Running, engines: Path) -> None:
    pairs = [(name, data) for data in IMAGES for name in ("birds", "cars")]
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda pair: server.ask(*pair), pairs))
    for pair, answer in zip(pairs, found, strict=True):
        assert shares(answer.json()) == pytest.approx(expected(engines, *pair), abs=1e-4)
    both = requests.post(
        f"{server.url}/v1/classify", params={"adapters": ["cars", "birds"]}, data=IMAGES[0], timeout=30
    )
    assert [one["adapter"] for one in both.json()] == ["cars", "birds"]
    for answer in both.json():
        assert shares(answer) == pytest.approx(expected(engines, answer["adapter"], IMAGES[0]), abs=1e-4)
    listed = requests.get(f"{server.url}/v1/adapters", timeout=5).json()
    assert [(one["name"], len(one["classes"]), one["error"]) for one in listed] == [
        ("birds", 3, None),
        ("cars", 5, None),
    ]
    assert listed[0]["sha256"] == both.json()[1]["sha256"]
    assert "gated_prompt_adapters_in_memory{" in requests.get(f"{server.url}/metrics", timeout=5).text
    assert requests.get(f"{server.url}/healthz", timeout=5).json() == {"status": "ok"}


def test_requests_that_cannot_be_answered(server: Running) -> None:
    several = f"{server.url}/v1/classify"
    assert server.ask("fish", IMAGES[0]).status_code == 404
    assert server.ask("birds", b"no image").status_code == 400
    for names, code in ((["birds", "fish"], 404), ([], 422), (["../birds"], 422), (["birds"] * 17, 422)):
        answer = requests.post(several, params={"adapters": names}, data=IMAGES[0], timeout=30)
        assert answer.status_code == code, answer.text
    answer = requests.post(f"{server.url}/v1/embed", params={"blocks": [0]}, data=IMAGES[0], timeout=30)
    assert (answer.status_code, "PyTorch" in answer.json()["detail"]) == (422, True)


def test_tasks_come_and_go(server: Running, engines: Path) -> None:
    allowed, url = server.root / "allowed", f"{server.url}/v1/adapters/new"
    assert put(server, "new", allowed / "trees", Authorization="Bearer x").status_code == 401
    assert put(server, "new", engines / "trees").status_code == 403
    for source in ("trees", "trees.safetensors"):  # an adapter, and the file of a task
        answer = put(server, "new", allowed / source)
        assert (answer.status_code, len(answer.json()["classes"])) == (200, 4), answer.text
        asked = server.ask("new", IMAGES[1]).json()
        assert shares(asked) == pytest.approx(expected(engines, "trees", IMAGES[1]), abs=1e-4)
        assert asked["sha256"] == answer.json()["sha256"]
    (allowed / "cut.safetensors").write_bytes((allowed / "trees.safetensors").read_bytes()[:-40])
    refused = {"cells": "Export another engine", "cut.safetensors": "is damaged", "": "lacks predictor.json"}
    for source, message in refused.items():
        answer = put(server, "new", allowed / source)
        assert (answer.status_code, message in answer.text) == (422, True), answer.text
        assert str(server.root) not in answer.text and ".new" not in answer.text
    assert shares(server.ask("new", IMAGES[1]).json()) == pytest.approx(shares(asked))
    assert requests.delete(url, headers=TOKEN, timeout=30).status_code == 204
    assert server.ask("new", IMAGES[1]).status_code == 404
    shutil.copyfile(allowed / "trees.safetensors", server.root / "engine" / "adapters" / "copied.safetensors")
    answer = server.ask("copied", IMAGES[2])
    assert shares(answer.json()) == pytest.approx(expected(engines, "trees", IMAGES[2]), abs=1e-4)
    (server.root / "engine" / "adapters" / "copied.safetensors").unlink()
    assert server.ask("copied", IMAGES[2]).status_code == 404
    assert [path.name for path in (server.root / "engine" / "adapters").iterdir() if path.name[0] == "."] == []
