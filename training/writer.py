"""Saving in the background: a copy in host memory, a thread that writes it."""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from training.checkpoint import optimizer_tensors, remove_old_checkpoints, trained, write_checkpoint
from training.distributed import whole


class CheckpointWriter:
    """Writes a run's checkpoints while training goes on, one at a time.

    Training waits for the copy of weights and optimizer state to host memory, and for the save
    before if that is not finished. The memory of that one copy is kept for the next. A save that
    fails is reported at once and leaves nothing behind; training goes on, and `close` raises
    ValueError if the last one failed.

    keep  how many of the newest checkpoints stay, the best one besides
    """

    def __init__(self, out_dir: Path, keep: int, is_main: bool):
        self.out_dir, self.keep, self.is_main = out_dir, keep, is_main
        self._copies: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._failed: str | None = None

    def save(self, model, optimizer, state: dict, write_model: Callable[[Path, dict], None]):
        """Begin to write `out_dir/step-<state["step"]>`. Call on every rank; the main one writes.

        write_model(folder, weights): writes what other tools open. weights: name -> Tensor on the
        CPU, of all parameters that are trained.
        """
        self.wait()
        weights = {name: self._copy(name, p) for name, p in trained(model)}
        tensors = optimizer_tensors(model, optimizer)
        moments = {name: self._copy(f"optimizer {name}", t) for name, t in tensors.items()}
        if not self.is_main:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        arguments = (weights, moments, copy.deepcopy(state), write_model)
        # not a daemon: should training fail, the interpreter still waits for the writing
        self._thread = threading.Thread(target=self._write, args=arguments)
        self._thread.start()

    def _copy(self, name: str, tensor: Tensor) -> Tensor | None:
        tensor = whole(tensor.detach())  # gathered from all ranks if it is sharded
        if not self.is_main:
            return None
        if name not in self._copies:
            on_gpu = tensor.device.type == "cuda"
            self._copies[name] = torch.empty_like(tensor, device="cpu", pin_memory=on_gpu)
        return self._copies[name].copy_(tensor, non_blocking=True)

    def _write(self, weights, moments, state, write_model):
        try:
            write_checkpoint(
                self.out_dir, moments, state, lambda folder: write_model(folder, weights)
            )
            self._failed = None
        except Exception as error:  # shown now; `close` ends the run with it if it was the last
            self._failed = f"{self.out_dir}: step {state['step']} was not saved: {error}"
            print(f"warning: {self._failed}; training goes on", file=sys.stderr, flush=True)
            return
        remove_old_checkpoints(self.out_dir, self.keep, state["best_step"])

    def wait(self):
        """Until nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def close(self):
        """Wait for the last save; ValueError if it failed."""
        self.wait()
        if self._failed:
            raise ValueError(self._failed)
