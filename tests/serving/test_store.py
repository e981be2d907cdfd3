"""The folder that replicas share: names switch in one step, and versions stay as long as somebody may read them."""

import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import zeros

from gated_prompt import AdapterNameError, DamagedAdapterError, GatedPromptError

pytest.importorskip("pydantic", reason="the server needs it: pip install -e '.[serve]'")

from gated_prompt.serving import store
from gated_prompt.serving.schemas import public
from gated_prompt.serving.store import Sources, Store

ADAPTERS = Path(__file__).parent / "adapters"  # gated prompts of three tasks, trained briefly


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return shutil.copytree(ADAPTERS, tmp_path / "served")


def marked(served: Store, mark: str) -> Path:
    """A version of the shapes with this model card."""
    version = served.new_version()
    Sources([str(ADAPTERS)]).copy(str(ADAPTERS / "shapes"), None, version)
    (version / "README.md").write_text(mark)
    return version


def test_a_name_leads_to_the_newest_version_and_old_ones_stay_for_a_while(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Store(str(root), changes=True)
    by_hand = served.find("shapes")
    assert by_hand == root / "shapes"
    first = marked(served, "first")
    served.publish(first, "shapes")
    assert served.find("shapes") == first
    second = marked(served, "second")
    served.publish(second, "shapes")
    assert [one.card for one in served.describe_all() if one.name == "shapes"] == ["second"]
    assert (first / "README.md").read_text() == "first"  # whoever reads it reads it to its end
    monkeypatch.setattr(store, "KEPT", -1.0)
    served.delete("shapes")
    assert [path.name for path in (root / ".versions").iterdir()] == []
    with pytest.raises(AdapterNameError):
        served.find("shapes")
    with pytest.raises(AdapterNameError):
        served.delete("shapes")
    assert {one.name for one in served.describe_all()} == {"digits", "objects"}


@pytest.mark.parametrize("by_hand", [True, False])
def test_a_name_is_never_missing_and_never_mixed_while_two_replicas_replace_it(root: Path, by_hand: bool) -> None:
    served, faults, stop = Store(str(root), changes=True), [], threading.Event()
    if not by_hand:
        served.publish(marked(served, "0"), "shapes")
    seen: set[str] = set()

    def read() -> None:
        own = Store(str(root), changes=True)
        while not stop.is_set():
            try:
                folder = own.find("shapes")
                seen.add((folder / "README.md").read_text() if folder.parent.name == ".versions" else "by hand")
            except Exception as error:
                faults.append(repr(error))

    def replace(number: int) -> None:
        own = Store(str(root), changes=True)
        for turn in range(15):
            own.publish(marked(own, f"{number}-{turn}"), "shapes")

    readers = [threading.Thread(target=read) for _ in range(2)]
    writers = [threading.Thread(target=replace, args=(number,)) for number in range(2)]
    for thread in (*readers, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in readers:
        thread.join()
    assert faults == []
    assert len(seen) > 1


def test_copies_that_were_never_served_go_when_they_are_old(root: Path) -> None:
    served = Store(str(root), changes=True)
    lost, in_use = marked(served, "lost"), marked(served, "in use")
    long_ago = time.time() - 2 * store.KEPT
    os.utime(lost, (long_ago, long_ago))
    served.publish(marked(served, "new"), "shapes")
    assert not lost.exists()
    assert in_use.exists()


def test_what_cannot_be_served_is_named(root: Path, tmp_path: Path) -> None:
    (root / "notes").mkdir()
    shutil.copytree(root / "digits", root / "no names")
    (shutil.copytree(root / "digits", root / "unfinished") / "predictor.json").unlink()
    lora = shutil.copytree(root / "digits", root / "lora") / "adapter_config.json"
    lora.write_text(json.dumps(json.loads(lora.read_text()) | {"peft_type": "LORA"}))
    whole = root / "whole"
    whole.mkdir()
    save_file({"vit.encoder.weight": zeros(1), "classifier.weight": zeros(5, 1)}, whole / "trained.safetensors")
    shutil.copy(root / "shapes" / "predictor.json", whole)
    found = Store(str(root)).skipped()
    words = {"notes": "neither an adapter nor a probe", "no names": "no name for an adapter", "lora": "another method"}
    words |= {"unfinished": "lacks predictor.json", "whole": "trained whole"}
    assert found.keys() == words.keys()
    assert [name for name, word in words.items() if word not in found[name]] == []
    with pytest.raises(GatedPromptError, match=r"'' is not a folder. Give one with a subfolder"):
        Store("")


def test_of_a_run_the_folder_that_it_says_to_use_is_served(root: Path) -> None:
    run = root / "photos"
    shutil.copytree(ADAPTERS / "shapes", run / "adapter")
    shutil.copytree(ADAPTERS / "digits", run / "other")
    served = Store(str(root), changes=True)
    assert "photos" in served.skipped()  # it has not finished
    (run / "results.json").write_text('{"use": "adapter"}')
    assert served.find("photos") == run / "adapter"
    (run / "results.json").write_text('{"use": "other", "more": 1}')
    assert served.find("photos") == run / "other"
    for elsewhere in ("../shapes", "/etc", "..", ""):
        (run / "results.json").write_text(json.dumps({"use": elsewhere}))
        with pytest.raises(AdapterNameError):
            served.find("photos")
    (run / "results.json").write_text('{"use": "adapter"}')
    version = served.new_version()
    Sources([str(root)]).copy(str(run), None, version)
    assert {path.name for path in version.iterdir()} >= {"adapter_config.json", "predictor.json"}
    for change in (lambda: served.publish(version, "photos"), lambda: served.delete("photos")):
        with pytest.raises(
            PermissionError, match="is a run of `train`, which the server neither replaces nor removes"
        ):
            change()
    assert (run / "results.json").is_file()


@pytest.mark.parametrize("name", ["", ".", "..", ".versions", "a\n", "a/b", "ä", "x" * 65, "a\0b"])
def test_names_that_are_none(root: Path, name: str) -> None:
    with pytest.raises(AdapterNameError):
        Store(str(root), changes=True).find(name)


@pytest.mark.parametrize("source", ["a\0b", "x" * 900, "x/" * 450, "/etc", "..", "someone/else", ""])
def test_sources_that_are_not_allowed(root: Path, tmp_path: Path, source: str) -> None:
    with pytest.raises(PermissionError, match="neither below a folder nor a Hub id"):
        Sources([str(root)]).copy(source, None, tmp_path)


def test_links_out_of_a_source_and_large_files_are_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "shapes" / "README.md").unlink()
    (root / "shapes" / "README.md").symlink_to(root / "digits" / "README.md")
    with pytest.raises(PermissionError, match=r"README\.md in .* is a link to another folder"):
        Sources([str(root)]).copy(str(root / "shapes"), None, tmp_path)
    monkeypatch.setattr(store, "LONGEST", 10)
    with pytest.raises(DamagedAdapterError, match="larger than 10 bytes"):
        Sources([str(root)]).copy(str(root / "digits"), None, tmp_path)


def test_messages_name_no_address_and_no_folder() -> None:
    assert public("cannot read <_io.BytesIO object at 0x7f00> in /srv/a b/x.bin", "/srv/a b") == (
        "cannot read <_io.BytesIO object> in x.bin"
    )
    assert public("/home/me/served/.versions/ab12/adapter_model.safetensors: damaged") == (
        "adapter_model.safetensors: damaged"
    )
    kept = "no adapter is named 'x'. GET /v1/adapters lists them. See https://example.org/a/b and 3/4"
    assert public(kept) == kept
