"""Hostile and unlucky clients of a real server on loopback: each gets 4xx or nothing, and the others their answers."""

import io
import json
import re
import shutil
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from PIL import Image

pytest.importorskip("ray", reason="the server needs it: pip install -e '.[serve]'")
pytest.importorskip("fastapi", reason="the server needs it: pip install -e '.[serve]'")

import requests

from helpers.running_server import Running, running_server

ADAPTERS = Path(__file__).parent / "adapters"
SAMPLE = (Path(__file__).parents[2] / "examples" / "demo" / "samples" / "cross.png").read_bytes()
SECRET = "open sesame"
TOKEN = {"Authorization": f"Bearer {SECRET}"}


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "grey").save(file, "PNG")
    return file.getvalue()


def put(server: Running, name: str, source: object, **headers: str) -> requests.Response:
    url = f"{server.url}/v1/adapters/{name}"
    return requests.put(url, json={"source": str(source)}, headers=TOKEN | headers, timeout=60)


def counted(server: Running, code: int) -> float:
    """Requests that ended with this code, by the replicas that a few questions reach."""
    found: dict[str, float] = {}
    for _ in range(12):
        text = requests.get(f"{server.url}/metrics", timeout=30).text
        for line in re.findall(rf'^gated_prompt_requests_total{{.*code="{code}".*}} [\d.]+$', text, re.MULTILINE):
            series, _, value = line.rpartition(" ")
            found[series] = float(value)
    return sum(found.values())


def test_images_that_are_large_in_memory_leave_the_others_their_answers(server: Running) -> None:
    """The limit of this server is one megapixel; the attack sends 24 at once, over and over."""
    bombs, stop = [png(1024, 1024), png(5000, 5000)], threading.Event()
    times, codes = [], set()

    def attack(number: int) -> None:
        while not stop.is_set():
            codes.add(server.ask("objects", bombs[number % 2]).status_code)

    with ThreadPoolExecutor(24) as threads:
        attackers = [threads.submit(attack, number) for number in range(24)]
        for _ in range(10):
            begin = time.monotonic()
            answer = server.ask("objects", SAMPLE)
            times.append(time.monotonic() - begin)
            assert answer.status_code in (200, 503), answer.text
        stop.set()
        for attacker in attackers:
            attacker.result()
    assert codes <= {200, 400, 503}
    assert sorted(times)[5] < 5  # seconds: a busy machine is slow; the page has the measured times
    assert all(one.memory_info().rss < 1.3e9 for one in server.replicas())


def test_clients_that_hang_up_count_as_499_and_hold_nothing(server: Running) -> None:
    port, before = int(server.url.rpartition(":")[2]), counted(server, 499)
    head = f"POST /v1/classify/objects HTTP/1.1\r\nHost: x\r\nContent-Length: {len(SAMPLE)}\r\n\r\n".encode()
    for _ in range(12):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as one:
            one.sendall(head + SAMPLE)
            time.sleep(0.01)  # into the wait for a batch
    deadline = time.monotonic() + 30
    while counted(server, 499) == before:
        assert time.monotonic() < deadline
    assert counted(server, 500) == 0
    assert server.ask("objects", SAMPLE).status_code == 200


def test_an_adapter_is_replaced_under_load_without_a_wrong_answer(server: Running) -> None:
    """Each answer is that of one of the two, whole, whichever of the two replicas gives it."""
    sources = [server.root / "allowed" / name for name in ("shapes", "digits")]
    assert put(server, "switched", sources[0]).status_code == 200
    wanted = [{one["name"]: one["score"] for one in ask_all(server, name)} for name in ("shapes", "digits")]
    stop, faults = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            answer = server.ask("switched", SAMPLE, params={"top_k": 10})
            if answer.status_code == 503:
                continue
            found = {one["name"]: one["score"] for one in answer.json().get("predictions", [])}
            if not any(found == pytest.approx(one, abs=1e-5) for one in wanted):
                faults.append((answer.status_code, answer.text))

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    changed = [put(server, "switched", sources[turn % 2]).status_code for turn in range(1, 21)]
    stop.set()
    for reader in readers:
        reader.join()
    assert faults == []
    assert changed == [200] * 20
    assert requests.delete(f"{server.url}/v1/adapters/switched", headers=TOKEN, timeout=30).status_code == 204


def ask_all(server: Running, name: str) -> list[dict[str, object]]:
    return list(server.ask(name, SAMPLE, params={"top_k": 10}).json()["predictions"])


@pytest.mark.parametrize("source", ["a\0b", "x" * 900, "/" + "x/" * 450, "\ud800", "..", "", "x" * 5000])
def test_sources_that_are_none(server: Running, source: str) -> None:
    body = json.dumps({"source": source})
    answer = requests.put(f"{server.url}/v1/adapters/odd", data=body, headers=TOKEN, timeout=30)
    assert answer.status_code in (403, 422), answer.text


@pytest.mark.parametrize("name", ["a%00b", "x" * 300, "a%0A", "%2e%2e", ".versions", "a%2Fb"])
def test_names_that_are_none(server: Running, name: str) -> None:
    assert put(server, name, server.root / "allowed" / "shapes").status_code in (404, 405, 422)
    assert server.ask(name, SAMPLE).status_code in (404, 422)


def test_headers_are_read_as_the_rfcs_say(server: Running) -> None:
    source = server.root / "allowed" / "shapes"
    assert put(server, "by-case", source, Authorization=f"bearer {SECRET}").status_code == 200
    for other in (f"Basic {SECRET}", SECRET, "Bearer", "Bearer \xe9"):
        assert put(server, "by-case", source, Authorization=other).status_code == 401
    assert requests.delete(f"{server.url}/v1/adapters/by-case", headers=TOKEN, timeout=30).status_code == 204
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="' + b"n" * 400 + b'"\r\n\r\n' + SAMPLE
    form = {"Content-Type": "Multipart/Form-Data; boundary=x"}
    assert server.ask("objects", body + b"\r\n--x--\r\n", headers=form).status_code == 200
    assert server.ask("objects", body, headers={"Content-Type": "multipart/form-data"}).status_code == 400


def test_settings_that_ask_for_huge_images_are_refused_at_once(server: Running) -> None:
    huge = shutil.copytree(ADAPTERS / "shapes", server.root / "allowed" / "huge", dirs_exist_ok=True)
    predictor = json.loads((huge / "predictor.json").read_text())
    predictor["preparation"]["size"] = 4096
    (huge / "predictor.json").write_text(json.dumps(predictor))
    answer = put(server, "huge", huge)
    assert answer.status_code == 422
    assert "sides of 4096 pixels. The limit is 1024" in answer.text


def test_messages_name_no_folder_of_the_server_and_no_address(server: Running) -> None:
    bad = shutil.copytree(ADAPTERS / "digits", server.root / "allowed" / "cut", dirs_exist_ok=True)
    weights = bad / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    shutil.copytree(bad, server.root / "adapters" / "cut", dirs_exist_ok=True)
    texts = [put(server, "cut2", bad).text, server.ask("cut", SAMPLE).text, server.ask("objects", b"x" * 99).text]
    texts.append(requests.get(f"{server.url}/v1/adapters", timeout=30).text)
    shutil.rmtree(server.root / "adapters" / "cut")
    assert "is not a readable safetensors file" in texts[0]
    for text in texts:
        assert str(server.root) not in text and ".versions" not in text and " at 0x" not in text, text


def test_the_token_lies_in_no_log_and_in_no_environment(server: Running) -> None:
    """Ray's folder of this session has the logs and the settings of every process that it started."""
    family = [server.process, *server.process.children(recursive=True)]
    commands = [" ".join(one.cmdline()) for one in family]
    (session,) = {found[0] for text in commands if (found := re.search(r"/[^ =]*/session_[\w-]+", text))}
    files = [path for path in Path(session).rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in (*files, server.root / "log") if SECRET.encode() in path.read_bytes()] == []
    assert [text for text in commands if SECRET in text] == []
    assert [one for one in family[1:] if SECRET in one.environ().values()] == []


def test_what_is_left_out_is_named_at_the_start(server: Running) -> None:
    log = (server.root / "log").read_text()
    assert "not served: notes: it has neither an adapter nor a probe, nor is it a finished run of `train`" in log


@pytest.mark.slow
def test_a_server_that_is_stopped_answers_what_it_has(tmp_path: Path) -> None:
    shutil.copytree(ADAPTERS, tmp_path / "adapters")
    with running_server(tmp_path, {"batch_wait_ms": 3000, "batch_size": 100}, []) as server:
        codes = []
        with ThreadPoolExecutor(8) as threads:
            answers = [threads.submit(server.ask, "objects", SAMPLE) for _ in range(8)]
            time.sleep(1)  # they wait for more images
            server.process.terminate()
            codes = [answer.result().status_code for answer in answers]
        assert codes == [200] * 8
        psutil.wait_procs([server.process], timeout=60)
