"""Reading from the Hub: commits, the cache and offline mode, against a stand-in server."""

import json
import os
import subprocess
import sys

import pytest

from gated_prompt.data.hub import HubImages, open_table
from gated_prompt.errors import DataError
from helpers.hub_copies import pixel_of_row, write_split
from helpers.hub_stand_in import HubStandIn

OLD, NEW = "1" * 40, "2" * 40
READ = """
import json, sys
sys.argv[0] = "gated-prompt"  # as in the command, the package then loads neither PEFT nor transformers at once
from gated_prompt.data.hub import open_table
from gated_prompt.errors import DataError

answers = []
for repo, revision in json.loads(sys.argv[1]):
    try:
        table = open_table(repo, "train", revision=revision)
        answers.append([table.revision, table.values("label")])
    except DataError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


def read(asked: list[tuple[str, str | None]], endpoint: str, home, **environment: str) -> list:
    """Reads in a separate process: the endpoint and the cache are fixed when `datasets` is imported."""
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    settings |= {"HF_HUB_OFFLINE": "0", **environment}
    done = subprocess.run(
        [sys.executable, "-c", READ, json.dumps(asked)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **settings},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_commits_cache_and_offline_mode(tmp_path):
    write_split(tmp_path / "old", "train", 2, label=[1, 2])
    write_split(tmp_path / "new", "train", 3, label=[3, 4, 5])
    home = tmp_path / "home"
    with HubStandIn() as hub:
        hub.add("datasets/someone/birds", tmp_path / "old", commit=OLD)
        hub.add("datasets/someone/birds", tmp_path / "new", commit=NEW)
        online = read(
            [("someone/birds", OLD), ("someone/birds", None), ("someone/birds", "3" * 40), ("someone/fish", None)],
            hub.url,
            home,
        )
    assert online[:2] == [[OLD, [1, 2]], [NEW, [3, 4, 5]]]
    assert online[2].startswith(f"Cannot read split 'train' of someone/birds at revision {'3' * 40}: ")
    assert online[3].startswith("Cannot read split 'train' of someone/fish: ")
    # The server is gone: what was read last stays readable, with or without its commit. The older commit must not
    # be answered with the newer one, which is what `datasets` would do.
    offline = read(
        [("someone/birds", NEW), ("someone/birds", None), ("someone/birds", OLD), ("someone/fish", None)],
        hub.url,
        home,
        HF_HUB_OFFLINE="1",
    )
    assert offline[:2] == [[NEW, [3, 4, 5]]] * 2
    assert f"at revision {OLD}: the newest cached commit is {NEW}" in offline[2]
    assert "give the folder of a local copy as `path`" in offline[3]


def test_column_that_holds_no_images_is_refused(tmp_path):
    write_split(tmp_path, "train", 2, label=[1, 2])
    table = open_table("someone/birds", "train", path=tmp_path)
    with pytest.raises(DataError, match="column 'label' does not hold images"):
        HubImages([table], "label", [(0, 0)])


def test_damaged_image_is_named_by_its_row(tmp_path, monkeypatch):
    monkeypatch.setattr("helpers.hub_copies.pixel_of_row", lambda row: b"BM" if row == 1 else pixel_of_row(row))
    write_split(tmp_path, "train", 3, label=[0, 1, 2])
    images = HubImages([open_table("someone/birds", "train", path=tmp_path)], "image", [(0, 0), (0, 1)])
    assert images[0].size == (1, 1)
    with pytest.raises(DataError, match=f"The image in row 1 of {tmp_path}, column 'image' cannot be decoded"):
        images[1]
