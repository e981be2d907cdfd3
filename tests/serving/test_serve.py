"""A real server on loopback: right answers from mixed batches, and refusals that name the fault."""

import importlib
import importlib.util
import io
import ipaddress
import os
import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml
from PIL import Image

import gated_prompt
from gated_prompt.heads import load_backbone
from gated_prompt.images import decode
from gated_prompt.predictor import Predictor, read_predictor
from gated_prompt.sharing.backbone import preparation
from gated_prompt.shipped import SHIPPED_BACKBONE
from helpers.pages import blocks

pytest.importorskip("ray", reason="the server needs it: pip install -e '.[serve]'")
pytest.importorskip("fastapi", reason="the server needs it: pip install -e '.[serve]'")

import requests

from helpers.running_server import Running

EXAMPLES = Path(__file__).parents[2] / "examples"
BACKBONE, ADAPTERS = SHIPPED_BACKBONE, Path(__file__).parent / "adapters"
NAMES = ("digits", "objects", "shapes")
BLOCKS = ("early", "late")  # further adapters, which enter and leave in between
TOKEN = {"Authorization": "Bearer open sesame"}
IMAGES = [path.read_bytes() for path in sorted((EXAMPLES / "demo" / "samples").iterdir())][:6]


@torch.no_grad()
def alone(name: str, data: bytes, root: Path = ADAPTERS) -> dict[str, float]:
    """What the adapter predicts on its own, loaded without a server."""
    predictor = read_predictor(root / name)
    model = gated_prompt.load(predictor.load_base(BACKBONE), root / name).eval()
    return dict(predictor.answer(model(predictor.transform()(decode(data))[None]).logits[0], 10))


def scores(response: requests.Response) -> dict[str, float]:
    assert response.status_code == 200, response.text
    return {one["name"]: one["score"] for one in response.json()["predictions"]}


def test_requests_of_different_tasks_share_batches_and_say_what_each_says_alone(server: Running) -> None:
    pairs = [(name, data) for data in IMAGES for name in (*NAMES, *BLOCKS)]
    with ThreadPoolExecutor(12) as threads:  # as many as the queue of one replica, which may get them all
        found = list(threads.map(lambda pair: scores(server.ask(*pair, params={"top_k": 10})), pairs))
    for pair, said in zip(pairs, found, strict=True):
        assert said == pytest.approx(alone(*pair, server.root / "adapters"), abs=1e-5)
    sizes = [
        float(line.split()[-1])
        for line in requests.get(f"{server.url}/metrics", timeout=5).text.splitlines()
        if line.startswith(("gated_prompt_batch_size_count", "gated_prompt_batch_size_sum"))
    ]
    assert sizes[1] > 1.2 * sizes[0]  # images, batches; on a busy machine some requests come too late for a batch


def test_several_adapters_see_an_image_in_one_request(server: Running) -> None:
    names, url = ["shapes", "late", "digits"], f"{server.url}/v1/classify"
    answers = requests.post(url, params={"adapters": names, "top_k": 10}, data=IMAGES[0], timeout=30).json()
    assert [one["adapter"] for one in answers] == names
    for one in answers:
        found = {each["name"]: each["score"] for each in one["predictions"]}
        assert found == pytest.approx(alone(one["adapter"], IMAGES[0], server.root / "adapters"), abs=1e-5)


@torch.no_grad()
def test_frozen_features_are_those_of_the_plain_backbone(server: Running) -> None:
    vit = load_backbone(str(BACKBONE)).eval()
    pixels = Predictor(["a"], preparation(str(BACKBONE))).transform()(decode(IMAGES[1]))[None]
    states = vit(pixel_values=pixels, output_hidden_states=True).hidden_states
    tokens = [vit.layernorm(states[block + 1])[0] for block in (3, 11)]
    wanted = torch.stack([torch.cat((one[0], one[1:].mean(0))) for one in tokens])
    url, question = f"{server.url}/v1/embed", {"blocks": [3, 11]}
    with ThreadPoolExecutor(4) as threads:  # beside predictions, in their batches
        asked = [threads.submit(server.ask, name, IMAGES[1]) for name in NAMES]
        answer = requests.post(url, params=question, data=IMAGES[1], timeout=30).json()
        assert [one.result().status_code for one in asked] == [200] * 3
    assert (answer["blocks"], answer["reads"]) == ([3, 11], "both")
    torch.testing.assert_close(torch.tensor(answer["features"]), wanted, rtol=1e-6, atol=1e-6)
    for reads, part in (("cls", slice(None, 128)), ("mean", slice(128, None))):
        answer = requests.post(url, params={**question, "reads": reads, "format": "npy"}, data=IMAGES[1], timeout=30)
        torch.testing.assert_close(
            torch.from_numpy(np.load(io.BytesIO(answer.content))), wanted[:, part], rtol=1e-6, atol=1e-6
        )
    for wrong in ({}, {"blocks": [12]}, {"blocks": [3, 1]}, {"blocks": [-1]}, {"blocks": [1], "reads": "all"}):
        assert requests.post(url, params=wrong, data=IMAGES[1], timeout=30).status_code == 422


def test_a_form_and_top_k(server: Running) -> None:
    url = f"{server.url}/v1/classify/objects"
    response = requests.post(url, files={"file": IMAGES[0]}, params={"top_k": 2}, timeout=30)
    assert scores(response) == pytest.approx(dict(list(alone("objects", IMAGES[0]).items())[:2]), abs=1e-5)
    for wrong in (0, -1, "many"):
        assert requests.post(url, data=IMAGES[0], params={"top_k": wrong}, timeout=5).status_code == 422
    two = {"a": IMAGES[0], "b": IMAGES[1]}
    assert requests.post(url, files=two, timeout=5).status_code == 400


def test_the_client_of_the_page(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photo.jpg").write_bytes(IMAGES[0])
    Path("runs/birds/adapter").mkdir(parents=True)
    for _, code in blocks("serving.md", "py"):
        exec(code.replace("http://127.0.0.1:8000", server.url), {})
    best = next(iter(alone("objects", IMAGES[0])))
    assert capsys.readouterr().out.splitlines()[-3].endswith(f" {best}")
    assert read_predictor("runs/birds/adapter").names == ["sparrow", "wren"]


def test_what_is_served(server: Running) -> None:
    listed = {one["name"]: one for one in requests.get(f"{server.url}/v1/adapters", timeout=5).json()}
    assert set(NAMES) <= set(listed)
    assert listed["shapes"]["classes"] == ["circle", "cross", "square", "star", "triangle"]
    assert listed["shapes"]["sha256"] and "Gated visual prompts" in listed["shapes"]["card"]
    assert requests.get(f"{server.url}/healthz", timeout=5).json() == {"status": "ok"}
    assert server.ask("nobody", IMAGES[0]).status_code == 404
    assert server.ask("..%2Fallowed%2Fdigits", IMAGES[0]).status_code in (404, 422)


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("kind", ["empty", "noise", "truncated", "bomb", "strip", "large", "broken form"])
def test_garbage_is_refused_and_the_server_goes_on(server: Running, kind: str) -> None:
    wanted, headers = 400, {}
    data = {"empty": b"", "noise": os.urandom(5000), "truncated": IMAGES[0][:200]}.get(kind, b"x" * 100)
    if kind == "bomb":
        data = png(20_000, 20_000)
        assert len(data) < 10**6
    elif kind == "strip":
        data = png(100_000, 1)  # would grow with its short side
    elif kind == "large":
        data, wanted = b"\0" * 3_000_000, 413
    elif kind == "broken form":
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
    try:
        response = server.ask("objects", data, headers=headers)
    except requests.ConnectionError:  # refused while it was still being sent
        assert kind == "large"
    else:
        assert response.status_code == wanted, response.text
        assert "detail" in response.json()
    scores(server.ask("objects", IMAGES[0]))


@pytest.mark.parametrize(("length", "code"), [(1000, 408), (10**12, 413)])
def test_uploads_that_are_slow_or_announced_as_huge_are_cut_off(server: Running, length: int, code: int) -> None:
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=20) as one:
        head = f"POST /v1/classify/objects HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\nabc"
        begin = time.monotonic()
        one.sendall(head.encode())
        assert f" {code} " in one.recv(1000).decode().split("\r\n")[0]
    assert time.monotonic() - begin < 10


def test_adapters_come_and_go(server: Running) -> None:
    url, source = f"{server.url}/v1/adapters/more", {"source": str(server.root / "allowed" / "shapes")}
    assert requests.put(url, json=source, timeout=30).status_code == 401
    assert requests.put(url, json=source, timeout=30, headers={"Authorization": "Bearer x"}).status_code == 401
    assert requests.delete(f"{server.url}/v1/adapters/shapes", timeout=30).status_code == 401
    huge = '{"source": "' + "x" * 100_000
    assert requests.put(url, data=huge, timeout=30, headers=TOKEN).status_code == 413
    assert requests.put(url, data='{"source": 1}', timeout=30, headers=TOKEN).status_code == 422
    elsewhere = {"source": str(ADAPTERS / "shapes")}
    assert requests.put(url, json=elsewhere, timeout=30, headers=TOKEN).status_code == 403
    assert requests.put(url, json={"source": "some/repository"}, timeout=30, headers=TOKEN).status_code == 403
    answer = requests.put(url, json=source, timeout=30, headers=TOKEN)
    assert (answer.status_code, answer.json()["name"]) == (200, "more")
    assert scores(server.ask("more", IMAGES[0])) == pytest.approx(alone("shapes", IMAGES[0]), abs=1e-5)
    assert requests.delete(url, timeout=30, headers=TOKEN).status_code == 204
    assert server.ask("more", IMAGES[0]).status_code == 404
    assert requests.delete(url, timeout=30, headers=TOKEN).status_code == 404
    assert {path.name for path in (server.root / "adapters").iterdir() if path.name.startswith(".")} == {
        ".versions",  # what is not served any more leaves it later
        ".versions.lock",
    }


def test_an_adapter_from_the_hub(server: Running) -> None:
    url = f"{server.url}/v1/adapters/from-the-hub"
    answer = requests.put(url, json={"source": "someone/shapes"}, timeout=30, headers=TOKEN)
    assert (answer.status_code, answer.json().get("name")) == (200, "from-the-hub"), answer.text
    assert scores(server.ask("from-the-hub", IMAGES[0])) == pytest.approx(alone("shapes", IMAGES[0]), abs=1e-5)
    wrong = {"source": "someone/shapes", "revision": "no-such-branch"}
    answer = requests.put(url, json=wrong, timeout=30, headers=TOKEN)
    assert (answer.status_code, "no adapter at 'someone/shapes'" in answer.text) == (422, True), answer.text
    scores(server.ask("from-the-hub", IMAGES[0]))
    assert requests.delete(url, timeout=30, headers=TOKEN).status_code == 204


def test_a_damaged_adapter_is_refused_in_the_words_of_the_package(server: Running) -> None:
    bad = shutil.copytree(ADAPTERS / "digits", server.root / "allowed" / "bad")
    weights = bad / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    answer = requests.put(f"{server.url}/v1/adapters/digits", json={"source": str(bad)}, timeout=30, headers=TOKEN)
    assert answer.status_code == 422
    assert "is not a readable safetensors file" in answer.json()["detail"]
    assert scores(server.ask("digits", IMAGES[0], params={"top_k": 10})) == pytest.approx(
        alone("digits", IMAGES[0]), abs=1e-5
    )


def test_too_many_at_once_are_asked_to_come_back(server: Running) -> None:
    with ThreadPoolExecutor(60) as threads:
        answers = list(threads.map(lambda _: server.ask("digits", IMAGES[0]), range(90)))
    codes = {answer.status_code for answer in answers}
    assert codes == {200, 503}
    assert all("Retry-After" in answer.headers for answer in answers if answer.status_code == 503)


def test_it_listens_on_loopback_alone(server: Running) -> None:
    family = [server.process, *server.process.children(recursive=True)]
    opened = [c.laddr for one in family for c in one.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert len(opened) > 1
    assert [place for place in opened if not is_loopback(place.ip)] == []


def is_loopback(ip: str) -> bool:
    address = ipaddress.ip_address(ip)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def test_a_killed_replica_comes_back(server: Running) -> None:
    """Last: clients that try again get their answer from the next replica."""
    server.replicas()[0].kill()
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        try:
            if server.ask("shapes", IMAGES[0]).status_code == 200:
                break
        except requests.RequestException:
            pass
        time.sleep(0.2)
    assert scores(server.ask("shapes", IMAGES[0], params={"top_k": 10})) == pytest.approx(
        alone("shapes", IMAGES[0]), abs=1e-5
    )


def test_the_config_for_a_cluster_is_one_that_serve_takes() -> None:
    from ray.serve.schema import ServeDeploySchema

    from gated_prompt.serving.settings import Settings

    config = ServeDeploySchema(**yaml.safe_load((EXAMPLES / "serving_load" / "serve_config.yaml").read_text()))
    (application,) = config.applications
    settings = Settings(**application.args)
    module, _, name = application.import_path.partition(":")
    graph = getattr(importlib.import_module(module), name)(application.args)
    (deployment,) = application.deployments
    assert deployment.name == graph._bound_deployment.name
    assert deployment.max_ongoing_requests == 2 * settings.queue
    assert (EXAMPLES.parent / settings.adapters).is_dir()
    assert (EXAMPLES.parent / settings.backbone).is_dir()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backbone", "no/such/place"], "cannot load --backbone 'no/such/place'"),
        (["--adapters", "no/such/place"], "--adapters 'no/such/place' is not a folder"),
        ([], "--adapters '' is not a folder. Give one with a subfolder for each adapter"),
        (["--queue", "0"], "--queue is 0. Expected more than 0"),
        (["--host", "0.0.0.0", "--allow", "runs"], "Put a secret into the environment variable GATED_PROMPT_TOKEN"),
    ],
)
def test_what_cannot_be_served_is_said_before_anything_starts(options: list[str], message: str) -> None:
    from gated_prompt.cli.serve import main

    with pytest.raises(SystemExit) as refusal:
        main(options)
    assert message in str(refusal.value)


def test_a_port_that_is_taken() -> None:
    from gated_prompt.cli.serve import main

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit, match="Give another port"):
        main(["--adapters", str(ADAPTERS), "--port", str(taken.getsockname()[1])])
