"""Run a script in two processes on CPU: `run(SCRIPT, ARGUMENT, ...)` from a test."""

import os
import runpy
import subprocess
import sys
from pathlib import Path


def run(script: str | Path, *arguments: str, timeout: int = 300) -> str:
    """Launch the script twice, connected by gloo; return what both printed. Fails with what they printed as errors."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__]
    process = subprocess.run(
        [*launch, str(script), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")
    # Without the clean-up of the interpreter: torch 2.13's gloo threads abort in it now and then.
    sys.stdout.flush()
    os._exit(0)
