"""Saving in the background: a thread makes a copy in host memory and writes it."""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from training import run_lock
from training.checkpoint import (
    optimizer_tensors,
    remove_leftovers,
    remove_old_checkpoints,
    trained,
    write_checkpoint,
)
from training.distributed import whole

_MOMENT = "optimizer "  # before the names of optimizer state, which a weight's could equal


class CheckpointWriter:
    """Writes a run's checkpoints while training goes on, one at a time.

    A thread copies weights and optimizer state to host memory and writes the copy. Only
    `optimizer.step` changes either of them: so forward and backward go on meanwhile, and the next
    step waits for the copy (on a GPU the stream waits, not the process). With --fsdp the copy is
    collective and made at once. A save waits for the save before if that is not finished; the
    memory of the one copy is kept for the next.

    A save that fails is reported at once and leaves nothing behind; training goes on, and `close`
    raises ValueError if the last one failed.

    keep  how many of the newest checkpoints stay, the best one besides
    """

    def __init__(self, out_dir: Path, keep: int, is_main: bool):
        self.out_dir, self.keep, self.is_main = out_dir, keep, is_main
        self._copies: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._copied = threading.Event()  # weights and moments may change when it is set, and
        self._copied_on_gpu: torch.cuda.Event | None = None  # on a GPU, when this has come
        self._optimizer = None
        self._failed: str | None = None

    def save(self, model, optimizer, state: dict, write_model: Callable[[Path, dict], None]):
        """Begin to write `out_dir/step-<state["step"]>`. Call on every rank; the main one writes.

        write_model(folder, weights): writes what other tools open. weights: name -> Tensor on the
        CPU, of all parameters that are trained.
        """
        self.wait()
        if self._optimizer is not optimizer:
            optimizer.register_step_pre_hook(lambda *_: self.wait_for_copy())
            self._optimizer = optimizer
        weights = {name: p.detach() for name, p in trained(model)}
        moments = {_MOMENT + n: t for n, t in optimizer_tensors(model, optimizer).items()}
        tensors = weights | moments
        device = next(iter(tensors.values())).device
        if any(isinstance(t, DTensor) for t in tensors.values()):
            # one after the other, so that only one of them is whole on the device at a time
            for name, tensor in tensors.items():
                self._copy(name, whole(tensor))
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            tensors = {}  # nothing is left to copy
        if not self.is_main:
            return
        computed = None  # comes when the GPU has computed what is to be copied
        if device.type == "cuda":
            computed = torch.cuda.current_stream(device).record_event()
        self._copied.clear()
        self._copied_on_gpu = None
        arguments = (tensors, device, computed, list(weights), list(moments), copy.deepcopy(state))
        # not a daemon: should training fail, the interpreter still waits for the writing
        self._thread = threading.Thread(
            target=self._run, args=(*arguments, write_model), name=run_lock.WRITER
        )
        self._thread.start()

    def wait_for_copy(self):
        """Until weights and moments may change. The optimizer calls it before every step."""
        if self._thread is not None:
            self._copied.wait()
            if self._copied_on_gpu is not None:
                self._copied_on_gpu.wait()  # the GPU's stream waits for it, this thread does not

    def _run(self, tensors, device, computed, weights, moments, state, write_model):
        """Copy, then write: what the thread does. weights, moments: the names of the copies."""
        try:
            try:
                if computed is None:
                    for name, tensor in tensors.items():
                        self._copy(name, tensor)
                else:
                    self._copy_from_gpu(tensors, device, computed)
            finally:  # also out of memory must not keep training waiting
                self._copied.set()
            if self._copied_on_gpu is not None:
                self._copied_on_gpu.synchronize()
            weights = {name: self._copies[name] for name in weights}
            moments = {name.removeprefix(_MOMENT): self._copies[name] for name in moments}
            write_checkpoint(
                self.out_dir, moments, state, lambda folder: write_model(folder, weights)
            )
            self._failed = None
        except Exception as error:  # shown now; `close` ends the run with it if it was the last
            self._failed = f"{self.out_dir}: step {state['step']} was not saved: {error}"
            print(f"warning: {self._failed}; training goes on", file=sys.stderr, flush=True)
            return
        remove_old_checkpoints(self.out_dir, self.keep, state["best_step"])

    def _copy_from_gpu(self, tensors, device: torch.device, computed: torch.cuda.Event):
        """Begin the copies on a stream of their own; `_copied_on_gpu` comes when they are done."""
        stream = torch.cuda.Stream(device)
        with torch.cuda.stream(stream):
            stream.wait_event(computed)
            for name, tensor in tensors.items():
                self._copy(name, tensor)
            self._copied_on_gpu = stream.record_event()

    def _copy(self, name: str, tensor: Tensor):
        if not self.is_main:
            return
        if name not in self._copies:
            on_gpu = tensor.device.type == "cuda"
            self._copies[name] = torch.empty_like(tensor, device="cpu", pin_memory=on_gpu)
        self._copies[name].copy_(tensor, non_blocking=tensor.device.type == "cuda")

    def wait(self):
        """Until nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def close(self):
        """Wait for the last save; ValueError if it failed."""
        self.wait()
        if self.is_main:  # a run that was killed after its last save has not come to it
            remove_leftovers(self.out_dir)
        if self._failed:
            raise ValueError(self._failed)
