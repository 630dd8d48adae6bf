"""Running a training script in several processes, as a user does."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def in_two_processes(script: str, out_dir: Path, *flags) -> None:
    """torchrun with two processes on this machine and a free port; it has to end with status 0."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               "--nproc_per_node", "2", script, "--out_dir", out_dir, *flags]  # fmt: skip
    done = subprocess.run(
        [str(word) for word in command],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
