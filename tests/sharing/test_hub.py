"""Push to the Hub and load back in another process, against a stand-in server.

The address of the Hub is fixed when `huggingface_hub` is imported, so both sides run in processes of their own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from helpers.hub_stand_in import HubStandIn, Refusal, check_metadata
from helpers.models import vit

PUSH = """
import json, sys
from pathlib import Path
import huggingface_hub, torch
from helpers.models import images
from peft import LoraConfig, get_peft_model
from transformers import ViTForImageClassification
import gated_prompt
from gated_prompt.finetune import report
from gated_prompt import GatedPromptConfig, model_card, push_to_hub

base_folder, scratch = map(Path, sys.argv[1:])
base = ViTForImageClassification.from_pretrained(base_folder, num_labels=3, ignore_mismatched_sizes=True)
model = get_peft_model(base, GatedPromptConfig(num_virtual_tokens=3), adapter_name="birds").eval()
with torch.no_grad():
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.normal_()
    torch.save(model(images()).logits, scratch / "logits.pt")
card = model_card(model, repo_id="user/birds", base_model="someone/tiny-vit", dataset="someone/birds",
                  split="test", metrics={"accuracy": 0.5}, license="apache-2.0", picture="gates.png")
if int(huggingface_hub.__version__.split(".")[0]) >= 2:  # older ones ask huggingface.co whatever HF_ENDPOINT says
    card.validate()
(scratch / "gates.png").write_bytes(b"a picture")
commit = push_to_hub(model, "user/birds", card=card, files=[scratch / "gates.png"], token="hf_secret")
push_to_hub(model, "no-metrics")
model.push_to_hub("user/peft")
model.push_to_hub("user/birds")
(scratch / "run" / "adapter").mkdir(parents=True)
model.save_pretrained(scratch / "run" / "adapter", selected_adapters=["birds"])
gated_prompt.write_card(scratch / "run" / "adapter", card)
(scratch / "run" / "gates.png").write_bytes(b"a picture")
report.push(scratch / "run", model, "user/run")  # the end of examples/train_vtab.py
(scratch / "full" / "model").mkdir(parents=True)
(scratch / "full" / "model" / "config.json").write_text("{}")
report.push(scratch / "full", base, "user/full")
base.config.name_or_path = "someone/tiny-vit"
lora = get_peft_model(ViTForImageClassification(base.config), LoraConfig(target_modules=["query", "q_proj"]))
lora.save_pretrained(scratch / "lora" / "adapter")
report.push(scratch / "lora", lora, "user/lora")
try:
    push_to_hub(model, "user/wrong", adapter_name="fish")
except gated_prompt.GatedPromptError as error:
    print(json.dumps([commit.oid, card.content, str(error)]))
"""
LOAD = """
import sys
from pathlib import Path
import torch
from helpers.models import images
from huggingface_hub import ModelCard
from peft import PeftModel
from transformers import ViTForImageClassification

base = ViTForImageClassification.from_pretrained("someone/tiny-vit", num_labels=3, ignore_mismatched_sizes=True)
try:
    PeftModel.from_pretrained(base, "user/birds")
except KeyError as error:
    assert error.args == ("GATED_PROMPT",), error
else:
    raise SystemExit("PEFT knows the method without the import")
wanted = torch.load(Path(sys.argv[1]) / "logits.pt")
card = ModelCard.load("user/birds")
names = {}
exec(card.text.split("```python\\n")[1].split("```")[0], names)  # the lines of the card, as they stand
with torch.no_grad():
    assert torch.equal(names["model"](images()).logits, wanted)
    # PEFT's own push keeps adapters with a name of their own in a subfolder.
    for repository, subfolder in (("user/peft", "birds"), ("user/run", None)):
        again = PeftModel.from_pretrained(names["model"].unload(), repository, subfolder=subfolder).eval()
        assert torch.equal(again(images()).logits, wanted), repository
        names["model"] = again
    import gated_prompt  # not before: the first lines show what is without it
    # Ours: a subfolder, and the commit before the card was replaced.
    for place in ({"adapter": "user/peft", "subfolder": "birds"}, {"adapter": "user/birds", "revision": sys.argv[2]}):
        again = gated_prompt.load(names["model"].unload(), **place, token="hf_other").eval()
        assert torch.equal(again(images()).logits, wanted), place
        names["model"] = again
    try:
        gated_prompt.load(again.unload(), "user/birds", revision="no-such-branch")
    except gated_prompt.DamagedAdapterError as error:
        assert "the Hub gave no adapter_config.json" in str(error), error
    else:
        raise SystemExit("a branch that is not there was loaded")
"""


def run(script: str, hub: HubStandIn, home: Path, *arguments: Path) -> str:
    path = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "examples"), *sys.path]
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "HF_HUB_OFFLINE": "0", **settings},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_push_and_load_in_a_fresh_process(tmp_path: Path) -> None:
    local = tmp_path / "a local folder" / "tiny-vit"
    vit(num_labels=7).save_pretrained(local)
    with HubStandIn() as hub:
        hub.add("someone/tiny-vit", local)
        oid, card, refusal = json.loads(run(PUSH, hub, tmp_path / "home", local, tmp_path).splitlines()[-1])
        run(LOAD, hub, tmp_path / "elsewhere", tmp_path, Path(oid))
    assert "no adapter 'fish' here. Choose from: birds" in refusal
    pushed = {"user/birds", "user/no-metrics", "user/peft", "user/run", "user/full", "user/lora"}
    assert set(hub.repos) == {"someone/tiny-vit", *pushed}

    first = hub.repos["user/birds"][oid]  # adapter, card and picture in one commit, after the empty repository's
    assert list(hub.repos["user/birds"])[1] == oid
    assert set(first) == {
        ".gitattributes",
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "gates.png",
    }
    assert first["README.md"].decode() == card
    assert hub.files("user/run") == first
    assert set(hub.files("user/full")) == {".gitattributes", "config.json"}
    assert set(hub.files("user/lora")) == set(first) - {"gates.png"}
    assert json.loads(first["adapter_config.json"])["base_model_name_or_path"] == "someone/tiny-vit"
    assert "hf_secret" not in str(hub.repos)

    bare = hub.files("user/no-metrics")
    assert 'PeftModel.from_pretrained(base, "user/no-metrics")' in bare["README.md"].decode()
    assert json.loads(bare["adapter_config.json"])["base_model_name_or_path"] == "tiny-vit"
    for name, content in {**first, **bare}.items():
        assert str(tmp_path).encode() not in content, name
    # PEFT's own push writes a template, but keeps a card that is there already.
    assert "gated" not in hub.files("user/peft")["README.md"].decode()
    assert ModelCard(hub.files("user/birds")["README.md"].decode()).content == card


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ("base_model: /home/me/vit", '"base_model" with value "/home/me/vit" is not valid'),
        ("datasets: [digits]", '"datasets" with value "digits"'),
        ("license: null", '"license" is empty'),
        (
            "model-index: [{name: a, results: [{task: {type: t}, dataset: {name: d}, metrics: []}]}]",
            "dataset.type",
        ),
        (
            "model-index: [{name: a, results: [{task: {type: t}, dataset: {name: d, type: d}, "
            "metrics: [{value: .nan}]}]}]",
            "nan is no number",
        ),
    ],
)
def test_the_stand_in_refuses_wrong_metadata(metadata: str, words: str) -> None:
    with pytest.raises(Refusal) as refusal:
        check_metadata(f"---\n{metadata}\n---\n# Title\n")
    assert words in refusal.value.text.replace('\\"', '"')
