"""Launchers that die: torchrun alone, and one of two machines (two torchrun on this one)."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.small_runs import REPOSITORY, make_inputs, metrics, result, run, start
from tests.test_interruptions import family, wait_for
from training import checkpoint

SLOW = """
import time, train_pretrain as script
from training import cli
from training.run_log import RunLog
step = RunLog.step
def slow(self, tokens):
    time.sleep(0.5)
    step(self, tokens)
RunLog.step = slow
cli.run(script.main)
"""


@pytest.fixture
def flags(tmp_path, tiny_tokenizer_dir):
    return make_inputs(tmp_path, tiny_tokenizer_dir)["pretrain"]


@pytest.fixture
def slow_script(tmp_path):
    """train_pretrain.py with half a second more in every update: time to be killed in."""
    path = tmp_path / "slow.py"
    path.write_text(SLOW)
    return path


def is_running(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def test_ranks_do_not_outlive_their_launcher(tmp_path, flags, slow_script):
    """SIGKILL to torchrun alone: its ranks save and leave, and a new start ends with equal bits."""
    run("pretrain", tmp_path / "whole", *flags, "--batch_size", 2, processes=2)
    process = start(slow_script, tmp_path / "run", *flags, "--batch_size", 2, processes=2)
    wait_for(process, "step  3/", [])
    _, *ranks = family(process.pid)
    assert len(ranks) >= 2
    process.kill()
    deadline = time.monotonic() + 30
    while any(map(is_running, ranks)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_running, ranks))
    process.communicate()
    newest = checkpoint.newest_checkpoint(tmp_path / "run")
    saved = checkpoint.read_json(newest / "resume/trainer_state.json")["step"]
    assert metrics(tmp_path / "run")[-1]["step"] == saved, "the running update was saved"
    run("pretrain", tmp_path / "run", *flags, "--batch_size", 2, processes=2)
    assert result(tmp_path / "run") == result(tmp_path / "whole")


@pytest.mark.slow
def test_a_rank_that_dies_is_started_again(tmp_path, flags):
    """torchrun --max-restarts: all ranks start again, from the newest checkpoint: equal bits."""
    flags = [*flags, "--batch_size", 2]
    run("pretrain", tmp_path / "whole", *flags, processes=2)
    script = tmp_path / "dies_once.py"
    script.write_text(
        "import os, signal, train_pretrain as script\n"
        "from training import cli\n"
        "from training.run_log import RunLog\n"
        "step, calls = RunLog.step, []\n"
        "def die(self, tokens):\n"
        "    calls.append(1)\n"
        "    first = os.environ['TORCHELASTIC_RESTART_COUNT'] == '0'\n"
        "    if first and os.environ['RANK'] == '1' and len(calls) == 5:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    step(self, tokens)\n"
        "RunLog.step = die\n"
        "cli.run(script.main)\n"
    )
    output = run(script, tmp_path / "run", *flags, processes=2, max_restarts=1)
    assert "going on from" in output
    assert result(tmp_path / "run") == result(tmp_path / "whole")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start_node(port: int, script, log, *flags):
    """torchrun as on one of two machines, one process each; what it prints goes to `log`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", 2, "--nproc_per_node", 1,
               "--max-restarts", 3, "--rdzv_backend", "c10d", "--rdzv_id", "run1",
               "--rdzv_endpoint", f"127.0.0.1:{port}", "--local_addr", "127.0.0.1",
               script, *flags]  # fmt: skip
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY),
        # else a new machine waits for an address that the old ones think it knows (torch 2.13)
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }  # fmt: skip
    with open(log, "a") as stdout:
        return subprocess.Popen(
            [str(word) for word in command], cwd=REPOSITORY, env=environment,
            stdout=stdout, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


@pytest.mark.slow
def test_one_of_two_machines_dies_and_comes_back(tmp_path, flags, slow_script):
    """The other one waits for it, both go on from the newest checkpoint, with the same bits."""
    flags = [*flags, "--batch_size", 2]
    run("pretrain", tmp_path / "whole", *flags, processes=2)
    port, log = free_port(), tmp_path / "log"
    flags = [*flags, "--out_dir", tmp_path / "run"]
    first = start_node(port, slow_script, log, *flags)
    time.sleep(1)  # the first machine holds the rendezvous
    second = start_node(port, slow_script, log, *flags)
    deadline = time.monotonic() + 120
    while "step  5/" not in log.read_text():
        assert time.monotonic() < deadline and first.poll() is None, log.read_text()
        time.sleep(0.1)
    for pid in family(second.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    second.wait()
    second = start_node(port, slow_script, log, *flags)
    try:
        assert first.wait(timeout=240) == 0, log.read_text()
        assert second.wait(timeout=60) == 0, log.read_text()
    finally:
        for node in (first, second):
            for pid in family(node.pid) if node.poll() is None else []:
                os.kill(pid, signal.SIGKILL)
    assert "going on from" in log.read_text()
    assert result(tmp_path / "run") == result(tmp_path / "whole")
