"""A training run that is killed (SIGKILL) at random moments and started again ends with the bytes of a straight run.

    python tests/attacks/kills.py 10

Half of the kills come after a random time, the others while a file or checkpoint is written but does not yet have its
name. Prints a line for each and exits with status 1 if a file of the end differs.
"""

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import gated_prompt.cli.train as command
from gated_prompt.shipped import SHIPPED_BACKBONE
from helpers.picture_folder import make_folder

SEED = 5
SETTINGS = ["--num_train_epochs", "3", "--num_virtual_tokens", "3", "--per_device_train_batch_size", "3"]
SETTINGS += ["--read_block", "last", "--ema_decay", "0.5"]


def start(arguments: list[str], log: Path, dies_at_rename: int | None = None) -> int:
    """Run the command in a forked process, which has its imports already, and return the process's id."""
    child = os.fork()
    if child:
        return child
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if dies_at_rename is not None:
        os.replace = _dying(os.replace, dies_at_rename)
    try:
        command.main(arguments)
    except BaseException as error:
        print(repr(error), flush=True)
        os._exit(1)
    os._exit(0)


def _dying(replace: Callable[..., None], calls: int) -> Callable[..., None]:
    left = [calls]

    def replace_or_die(*args: Any, **kwargs: Any) -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*args, **kwargs)

    return replace_or_die


def ended(child: int) -> int:
    """Wait for a process, and return its exit status, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def attack(folder: Path, kills: int, backbone: Path, seed: int = SEED) -> tuple[list[str], list[str]]:
    """How each of the kills went, and the files that differ when a run came to its end; `folder` takes all files.

    A run that ends before it is killed is compared too, and the next kill meets a new one.

    Raises:
        RuntimeError: a run failed rather than being killed.
    """
    random_ = random.Random(seed)
    photos, log = make_folder(folder / "photos"), folder / "log.txt"
    outputs = folder / "straight" / "run", folder / "killed" / "run"
    common = ["--train_dir", str(photos), "--backbone", str(backbone), *SETTINGS]
    straight, killed = (
        [*common, "--output_dir", str(output), "--cache_dir", str(output.parent / "features")] for output in outputs
    )
    began = time.monotonic()
    _succeeded(ended(start(straight, log)), log)
    seconds, lines, differ = time.monotonic() - began, list[str](), set[str]()
    for number in range(kills):
        if number % 2:
            renames = random_.randint(1, 12)
            status, when = ended(start(killed, log, renames)), f"at rename {renames}"
        else:
            delay = random_.uniform(0.05, 0.7) * seconds
            child, when = start(killed, log), f"after {delay:.1f} of {seconds:.1f} s"
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
            status = ended(child)
        lines.append(f"{'killed' if status == -signal.SIGKILL else 'had ended'} {when}")
        if status != -signal.SIGKILL:
            _succeeded(status, log)
            differ |= _differing(*outputs)
            shutil.rmtree(outputs[1])
    _succeeded(ended(start(killed, log)), log)
    return lines, sorted(differ | _differing(*outputs))


def _differing(straight: Path, killed: Path) -> set[str]:
    files = [*straight.rglob("*.safetensors"), *straight.rglob("*-race.json")]
    names = [file.relative_to(straight) for file in files]
    return {str(name) for name in names if not _equal(straight / name, killed / name)}


def _equal(one: Path, other: Path) -> bool:
    return other.is_file() and one.read_bytes() == other.read_bytes()


def _succeeded(status: int, log: Path) -> None:
    if status:
        raise RuntimeError(f"exit status {status}: {log.read_text(errors='replace')[-2000:]}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        told, wrong = attack(Path(place), int(sys.argv[1]) if len(sys.argv) > 1 else 10, SHIPPED_BACKBONE)
        print(*told, f"files that differ: {wrong}", sep="\n")
    sys.exit(bool(wrong))
