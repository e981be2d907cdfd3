"""Run a script in two processes on CPU: `run(SCRIPT, ARGUMENT, ...)` from a test."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import psutil

# Once in a while a worker hangs in a destructor of torch 2.13's gloo, when the script's main() has returned and all is
# done. What hangs twice is ours.
ATTEMPTS, SECONDS = 2, 100


def run(script: str | Path, *arguments: str) -> str:
    """Launch the script twice, connected by gloo; return what both printed. Fails with what they printed as errors."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    for _ in range(ATTEMPTS):
        process = subprocess.Popen(
            [*launch, str(script), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
            start_new_session=True,
        )
        try:
            out, errors = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            # The two workers as well, which torchrun gives sessions of their own.
            for worker in [*psutil.Process(process.pid).children(recursive=True), process]:
                worker.kill()
            process.wait()
            continue
        assert process.returncode == 0, errors[-3000:]
        return out
    raise AssertionError(f"{Path(script).name} in two processes hung {ATTEMPTS} times, {SECONDS} s each")


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).parent)  # as for a script
    sys.path.append(str(Path(__file__).parents[1]))
    runpy.run_path(sys.argv[0], run_name="__main__")
    # Without the clean-up of the interpreter: torch 2.13's gloo threads abort in it now and then.
    sys.stdout.flush()
    os._exit(0)
