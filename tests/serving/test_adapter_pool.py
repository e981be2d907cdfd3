"""Adapters of many tasks on one backbone: the answers of single calls, within the limit, whatever comes and goes."""

import copy
import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file

import gated_prompt
from gated_prompt import AdapterMismatchError, DamagedAdapterError, GatedPromptConfig, GatedPromptError
from gated_prompt.heads import TokenClassifier, load_backbone
from gated_prompt.predictor import Predictor
from gated_prompt.serving.cache import PoolFullError
from gated_prompt.serving.pool import AdapterPool
from gated_prompt.serving.resident import Resident
from helpers.models import dinov2, images, vit

SQUARE = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "size": 32, "antialias": True}
CROP = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize": 32, "crop": 32}
CLASSES = {"birds": 5, "pets": 3, "trees": 7}


def classifier(classes: int) -> torch.nn.Module:
    """The backbone of `pool` with a head."""
    model = vit(num_labels=classes)
    model.load_state_dict(vit(num_labels=0).state_dict(), strict=False)
    return model


def write_adapter(folder: Path, classes: int, **settings: object) -> Path:
    model = get_peft_model(classifier(classes), GatedPromptConfig(gate_init=0.0, **settings))
    torch.manual_seed(classes)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    gated_prompt.save(model, folder)
    Predictor([f"{folder.name} {i}" for i in range(classes)], SQUARE).write(folder)
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    found = {name: write_adapter(root / name, k, num_virtual_tokens=3) for name, k in CLASSES.items()}
    found["deep"] = write_adapter(root / "deep", 4, num_virtual_tokens=2, deep=True)
    found["zero"] = write_adapter(root / "zero", 2, num_virtual_tokens=2, deep=True, zero_start=True)
    found["pooled"] = write_adapter(root / "pooled", 2, num_virtual_tokens=3, pooling="patches")
    return found


@pytest.fixture
def folders(written: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """Copies that a test may damage."""
    return {name: shutil.copytree(folder, tmp_path / name) for name, folder in written.items()}


def pool(memory: int = 10**6) -> AdapterPool:
    return AdapterPool(vit(num_labels=0), memory)


@torch.no_grad()
def alone(folder: Path, pixels: torch.Tensor) -> torch.Tensor:
    """What the usual way of loading says."""
    classes = len(json.loads((folder / "predictor.json").read_text())["names"])
    return gated_prompt.load(classifier(classes), folder).eval()(pixels).logits


def ask(shared: AdapterPool, names: list[Path], pixels: torch.Tensor) -> list[torch.Tensor]:
    with ExitStack() as stack:
        return shared.logits(pixels, [stack.enter_context(shared.hold(name)) for name in names])


def test_a_mixed_batch_says_what_single_calls_say(folders: dict[str, Path]) -> None:
    """Four structures, five numbers of classes."""
    names = [folders[n] for n in ("birds", "deep", "pets", "pooled", "birds", "trees", "zero")]
    pixels = images(7)
    found = ask(pool(), names, pixels)
    for row, folder, logits in zip(pixels, names, found, strict=True):
        torch.testing.assert_close(logits, alone(folder, row[None])[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("headless", [False, True])
@pytest.mark.parametrize("make", [vit, dinov2])
def test_heads_that_read_other_tokens_share_a_batch(
    make: Callable[..., torch.nn.Module], headless: bool, tmp_path: Path
) -> None:
    """`TokenClassifier` heads, adapters of several blocks, and, if the backbone has one, a head of its own class."""
    whole = make(num_labels=4)
    folders: dict[Path, torch.nn.Module] = {}
    wanted = [("cls", 0, None), ("mean", 1, None), ("both", 1, 2), ("mean", 0, 1), *[(None, 0, 2)] * (not headless)]
    for number, (reads, insert_at, read_from) in enumerate(wanted):
        torch.manual_seed(number)
        base = copy.deepcopy(whole)
        base = base if reads is None else TokenClassifier(base.base_model, 4, reads)
        config = GatedPromptConfig(num_virtual_tokens=2, gate_init=0.0, insert_at=insert_at, read_from=read_from)
        model = get_peft_model(base, config)
        gated_prompt.save(model, tmp_path / str(number))
        Predictor(list("abcd"), SQUARE, reads=reads).write(tmp_path / str(number))
        folders[tmp_path / str(number)] = model.eval()
    backbone = make(num_labels=0)
    backbone.load_state_dict(whole.state_dict(), strict=False)
    shared = AdapterPool(backbone.base_model if headless else backbone, 10**6)
    pixels, names = images(2 * len(folders)), [*folders, *folders]
    for row, folder, logits in zip(pixels, names, ask(shared, names, pixels), strict=True):
        with torch.no_grad():
            torch.testing.assert_close(logits, folders[folder](row[None]).logits[0], rtol=1e-5, atol=1e-5)


def test_a_head_that_this_backbone_does_not_have_is_refused(folders: dict[str, Path]) -> None:
    shared = AdapterPool(vit(num_labels=0).base_model, 10**6)
    with (
        pytest.raises(AdapterMismatchError, match="does not say what the adapter's head reads"),
        shared.hold(folders["birds"]),
    ):
        pass
    assert shared.nbytes == 0


def test_memory_is_what_the_tensors_take_and_stays_within_the_limit(folders: dict[str, Path]) -> None:
    shared = pool()
    with shared.hold(folders["birds"]) as birds:
        pass
    on_model = [p for n, p in shared.model.named_parameters() if n.endswith(f".{birds.key}")]
    assert birds.nbytes == shared.nbytes == 4 * (sum(p.numel() for p in on_model) + 5 * 32 + 5)

    shared = pool(memory=2 * birds.nbytes + 500)
    for name in ("birds", "pets", "trees", "birds"):
        with shared.hold(folders[name]):
            assert shared.nbytes <= shared.memory
    assert len(shared) == 2
    held = [n for n, _ in shared.model.named_parameters() if "gated_prompt_tokens" in n]
    assert len(held) == 3  # the two and the anchor


def test_the_least_recently_used_goes(folders: dict[str, Path]) -> None:
    with pool().hold(folders["trees"]) as trees:
        size = trees.nbytes
    shared = pool(memory=2 * size)
    keys = {}
    for name in ("birds", "pets", "birds", "trees", "birds"):
        with shared.hold(folders[name]) as resident:
            assert keys.setdefault(name, resident.key) == resident.key  # birds is never loaded again


def test_what_is_in_use_stays_and_the_pool_says_when_it_is_full(folders: dict[str, Path]) -> None:
    with pool().hold(folders["birds"]) as birds:
        size = birds.nbytes
    shared = pool(memory=size)
    with shared.hold(folders["birds"]):
        with pytest.raises(PoolFullError, match="in use"), shared.hold(folders["pets"]):
            pass
        ask(shared, [folders["birds"]], images(1))
    ask(shared, [folders["pets"]], images(1))
    with (
        pytest.raises(GatedPromptError, match="more than the limit of 100 for all"),
        pool(100).hold(folders["birds"]),
    ):
        pass


@pytest.mark.parametrize("fault", ["weights", "no weights", "names", "preparation", "no predictor", "pickle", "head"])
def test_the_damaged_are_refused_and_disturb_nobody(folders: dict[str, Path], fault: str) -> None:
    shared, pixels, pets = pool(), images(2), folders["pets"]
    before = ask(shared, [folders["birds"]] * 2, pixels)
    keys = list(shared.model.peft_config)
    weights, predictor = pets / "adapter_model.safetensors", pets / "predictor.json"
    if fault == "weights":
        weights.write_bytes(weights.read_bytes()[:-8])
    elif fault == "no weights":
        weights.unlink()
    elif fault == "names":
        Predictor(["only one"], SQUARE).write(pets)
    elif fault == "preparation":
        predictor.write_text(json.dumps({"names": ["a", "b", "c"], "preparation": SQUARE | {"size": 10**9}}))
    elif fault == "no predictor":
        predictor.unlink()
    elif fault == "pickle":
        weights.rename(pets / "adapter_model.bin")
    else:
        model = get_peft_model(vit(num_labels=3), GatedPromptConfig(num_virtual_tokens=3, modules_to_save=[]))
        gated_prompt.save(model, pets)
    with pytest.raises((DamagedAdapterError, AdapterMismatchError)) as refusal, shared.hold(pets):
        pass
    assert str(pets) in str(refusal.value)
    assert list(shared.model.peft_config) == keys
    assert all(map(torch.equal, before, ask(shared, [folders["birds"]] * 2, pixels)))


def test_another_backbone_is_refused(folders: dict[str, Path]) -> None:
    config = folders["pets"] / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "facebook/other"}))
    shared = AdapterPool(vit(num_labels=0), 10**6, backbone_name="some/place/mine")
    with pytest.raises(AdapterMismatchError, match="trained on 'other', the backbone here is 'mine'"):
        shared.hold(folders["pets"]).__enter__()
    deeper = AdapterPool(vit(num_labels=0, num_hidden_layers=5), 10**6)
    with pytest.raises(AdapterMismatchError), deeper.hold(folders["birds"]):
        pass
    assert deeper.nbytes == 0


def test_a_backbone_with_other_settings_is_refused(folders: dict[str, Path]) -> None:
    """Prompts alone fit a shortened backbone and the whole one alike; the answers would be wrong."""
    layers = pool().model.get_base_model().config.num_hidden_layers
    Predictor(["a", "b", "c"], SQUARE, base={"num_hidden_layers": layers}).write(folders["pets"])
    ask(pool(), [folders["pets"]], images(1))
    Predictor(["a", "b", "c"], SQUARE, base={"num_hidden_layers": layers - 1}).write(folders["pets"])
    with pytest.raises(AdapterMismatchError, match=f"num_hidden_layers={layers - 1}"), pool().hold(folders["pets"]):
        pass


def test_a_size_that_the_backbone_does_not_take_is_refused(folders: dict[str, Path]) -> None:
    Predictor(["a", "b", "c"], SQUARE | {"size": 40}).write(folders["pets"])
    with pytest.raises(AdapterMismatchError, match="does not compute on this backbone"), pool().hold(folders["pets"]):
        pass


def test_an_adapter_saved_anew_is_read_anew_and_calls_in_flight_keep_theirs(folders: dict[str, Path]) -> None:
    shared, pixels = pool(), images(1)
    with shared.hold(folders["pets"]) as old:
        (before,) = shared.logits(pixels, [old])
        write_adapter(folders["pets"], 6, num_virtual_tokens=3)
        with shared.hold(folders["pets"]) as new:
            assert len(shared.logits(pixels, [new])[0]) == 6
        assert torch.equal(shared.logits(pixels, [old])[0], before)
    shared.forget(folders["birds"])  # of nothing: no harm
    shared.forget(folders["pets"])
    assert shared.nbytes == len(shared) == 0


def test_many_threads(folders: dict[str, Path]) -> None:
    """Twice the adapters that fit, asked for by four threads, while a fifth deletes: no wrong answer."""
    with pool().hold(folders["trees"]) as trees:
        size = trees.nbytes
    shared, pixels, faults = pool(memory=3 * size), images(1), []
    wanted = {folder: alone(folder, pixels)[0] for folder in folders.values()}

    def run(number: int) -> None:
        order = list(wanted)[number:] + list(wanted)[:number]
        for folder in order * 6:
            try:
                (found,) = ask(shared, [folder], pixels)
                torch.testing.assert_close(found, wanted[folder], rtol=1e-5, atol=1e-5)
            except PoolFullError:
                continue
            except Exception as error:
                faults.append(repr(error))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        shared.forget(folders["birds"])
        threads[0].join(0.01)
    for thread in threads:
        thread.join()
    assert faults == []
    assert shared.nbytes <= shared.memory


def test_a_folder_that_is_replaced_is_never_taken_for_damaged(folders: dict[str, Path]) -> None:
    """As a server replaces it: the old folder is renamed away, the new one in."""
    shared, pixels, faults, stop = pool(), images(1), [], threading.Event()
    wanted = alone(folders["birds"], pixels)[0]

    def run() -> None:
        while not stop.is_set():
            try:
                torch.testing.assert_close(ask(shared, [folders["birds"]], pixels)[0], wanted, rtol=1e-5, atol=1e-5)
            except Exception as error:
                faults.append(repr(error))

    reader = threading.Thread(target=run)
    reader.start()
    for number in range(20):
        new = shutil.copytree(folders["birds"], folders["birds"].with_name(f"new-{number}"))
        folders["birds"].rename(new.with_name(f"old-{number}"))
        new.rename(folders["birds"])
    stop.set()
    reader.join()
    assert faults == []


def test_scores_that_are_not_finite_are_refused(folders: dict[str, Path]) -> None:
    """Each weight is finite, but their sum with the features is not."""
    path = folders["pets"] / "adapter_model.safetensors"
    tensors = load_file(path)
    weight, bias = (tensors[f"base_model.model.classifier.{name}"] for name in ("weight", "bias"))
    weight[0].copy_(1e38 * torch.randn_like(weight[0]).sign())
    weight[1].copy_(-weight[0])  # one of the two adds to the bias
    bias.fill_(3.4e38)
    replace_weights(folders["pets"], tensors)
    shared = pool()
    with pytest.raises(AdapterMismatchError, match="scores of a grey image are not finite"):
        shared.hold(folders["pets"]).__enter__()
    assert shared.nbytes == len(shared) == 0


def replace_weights(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write other weights, and a config that knows them."""
    path, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    save_file(tensors, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    config.write_text(json.dumps(json.loads(config.read_text()) | {"weights_sha256": sha256}))


@pytest.mark.parametrize("preparation", [SQUARE | {"size": 200}, CROP | {"resize": 200, "crop": 32}])
def test_images_of_sides_above_the_limit_are_refused_before_one_is_made(
    folders: dict[str, Path], preparation: dict[str, object]
) -> None:
    Predictor(["a", "b", "c"], preparation).write(folders["pets"])
    shared = AdapterPool(vit(num_labels=0), 10**6, image_side=100)
    with pytest.raises(AdapterMismatchError, match=r"sides of 200 pixels. The limit is 100"):
        shared.hold(folders["pets"]).__enter__()


def test_an_adapter_that_is_tried_for_long_blocks_no_other(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, entered, leave = pool(), threading.Event(), threading.Event()
    logits = shared.logits

    def slow(pixels: torch.Tensor, residents: Sequence[Resident]) -> list[torch.Tensor]:
        if pixels.shape[-1] == 40:
            entered.set()
            leave.wait(30)
            raise RuntimeError("too large")
        return logits(pixels, residents)

    monkeypatch.setattr(shared, "logits", slow)
    Predictor(["a", "b", "c"], SQUARE | {"size": 40}).write(folders["pets"])
    refused: list[str] = []

    def hold() -> None:
        try:
            shared.hold(folders["pets"]).__enter__()
        except AdapterMismatchError as error:
            refused.append(str(error))

    trial = threading.Thread(target=hold)
    trial.start()
    assert entered.wait(30)
    ask(shared, [folders["birds"]], images(1))
    shared.forget(folders["birds"])
    assert not refused
    leave.set()
    trial.join()
    assert len(refused) == 1
    assert shared.nbytes == len(shared) == 0


def write_probe(folder: Path, whole: torch.nn.Module, block: int | None, blocks: list[int] | None) -> torch.nn.Module:
    """A head as `train` leaves it: on a backbone that ends after `block`, or on the tokens of several blocks."""
    settings = {} if block is None else {"num_hidden_layers": block + 1}
    whole.save_pretrained(folder.with_name("whole"))
    torch.manual_seed(block or 0)
    model = TokenClassifier(load_backbone(str(folder.with_name("whole")), **settings), 4, "both", blocks)
    folder.mkdir()
    save_file(model.classifier.state_dict(prefix="classifier."), folder / "trained.safetensors")
    Predictor(list("abcd"), SQUARE, reads="both", base=settings, blocks=blocks).write(folder)
    return model.eval()


@pytest.mark.parametrize("headless", [False, True])
@pytest.mark.parametrize("make", [vit, dinov2])
def test_probes_and_heads_of_several_blocks_ride_in_the_pass_of_the_prompts(
    make: Callable[..., torch.nn.Module], headless: bool, tmp_path: Path
) -> None:
    whole = make(num_labels=4).eval()
    probes = [("last", None, None), ("early", 1, None), ("first", 0, None), ("two", None, [0, 2]), ("cut", 1, [0, 1])]
    folders = {tmp_path / name: write_probe(tmp_path / name, whole, *read) for name, *read in probes}
    for name, insert_at in (("both", 0), ("late", 1)):
        torch.manual_seed(7)
        model = get_peft_model(
            TokenClassifier(copy.deepcopy(whole.base_model), 4, "mean", [1, 2]),
            GatedPromptConfig(num_virtual_tokens=2, gate_init=0.0, insert_at=insert_at),
        )
        gated_prompt.save(model, tmp_path / name)
        Predictor(list("abcd"), SQUARE, reads="mean", blocks=[1, 2]).write(tmp_path / name)
        folders[tmp_path / name] = model.eval()
    backbone = make(num_labels=0)
    backbone.load_state_dict(whole.state_dict(), strict=False)
    shared = AdapterPool(backbone.base_model if headless else backbone, 10**6)
    pixels, names = images(2 * len(folders)), [*folders, *folders]
    calls: list[int] = []
    for folder in folders:  # loading tries each adapter alone
        with shared.hold(folder):
            pass
    shared.model.register_forward_hook(lambda *_: calls.append(1))
    for row, folder, logits in zip(pixels, names, ask(shared, names, pixels), strict=True):
        with torch.no_grad():
            torch.testing.assert_close(logits, folders[folder](row[None]).logits[0], rtol=1e-5, atol=1e-5)
    assert len(calls) == 1
    for folder in folders:
        shared.forget(folder)
    assert shared.nbytes == len(shared) == 0


@pytest.mark.parametrize("fault", ["cut", "names", "whole model", "deeper", "block"])
def test_probes_that_cannot_be_used(tmp_path: Path, fault: str) -> None:
    folder, shared = tmp_path / "probe", pool()
    write_probe(folder, vit(num_labels=4), 1, None)
    weights, depth = folder / "trained.safetensors", shared.features.num_blocks
    if fault == "cut":
        weights.write_bytes(weights.read_bytes()[:-8])
    elif fault == "names":
        Predictor(["only one"], SQUARE, reads="both").write(folder)
    elif fault == "whole model":
        save_file({**load_file(weights), "vit.x": torch.zeros(1)}, weights)
    elif fault == "deeper":
        Predictor(list("abcd"), SQUARE, reads="both", base={"num_hidden_layers": depth + 1}).write(folder)
    else:
        Predictor(list("abcd"), SQUARE, reads="both", blocks=[depth]).write(folder)
    with pytest.raises((DamagedAdapterError, AdapterMismatchError)) as refusal:
        shared.hold(folder).__enter__()
    assert str(folder) in str(refusal.value)
    assert shared.nbytes == len(shared) == 0
