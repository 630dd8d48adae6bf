"""`Run`: what keeps a training run alive, so that a script can say what is learned and no more.

It owns the process group, device and precision, the run's identity and state, the order of the
batches, the log, held-out figures that come due, saves, signals, and updates that go wrong. It has
no formula and nothing to override: the script calls it, at the numbered steps, and hands over two
functions, what to measure and how to write a model folder (docs/decisions.md says why).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dataset.sampler import UpdateSampler
from training import checkpoint, compute
from training.distributed import (
    building_device,
    data_parallel,
    gradient_sync,
    init_distributed,
    seed_dropout,
    shard,
    sum_over_ranks,
)
from training.loading import make_loader, on_device
from training.loss_watch import LossWatch
from training.memory import fit_memory
from training.optimizers import skip_unless_finite
from training.run_log import open_log
from training.start import first_state, open_run
from training.stopping import Stopping
from training.writer import CheckpointWriter


class Run:
    """One run of a training script, from its flags to its last checkpoint.

    args     the flags of the script, those of cli.add_training_flags and add_run_flags among them
    config   the LMConfig of the model
    adapter  the LoRAConfig, if there is one
    more     what else a run must keep to be the same run: numbers of the loss, by their flags

    Raises ValueError for what needs no data to be seen to be wrong; ends the process, with status
    0, if the run has all its steps already. Every rank has to call every method.

    state         RunState: step, tokens and so on, as saved
    resumed_from  the checkpoint to go on from, or None for a new run
    home          the device on which the model is to be made or loaded
    device, dtype, autocast  where and in what precision to compute
    total_steps   updates of the whole run (known once there is a loader)
    """

    def __init__(self, args, config, adapter=None, **more):
        self.args, self.config, self.adapter = args, config, adapter
        self.ranks = init_distributed(args.device, args.deterministic)
        self.device, self.stop = self.ranks.device, Stopping(self.ranks)
        compute.check_cuda_graphs(args, self.ranks, config)
        self.dtype = compute.choose_dtype(args.dtype, self.device)
        is_mixed = self.dtype != torch.float32
        self.autocast = torch.autocast(self.device.type, self.dtype, enabled=is_mixed)
        self.resumed_from, self.identity = open_run(args, self.ranks, config, adapter, **more)
        self.home = building_device(self.ranks, args.fsdp)
        self._has_tried_memory = False

    @property
    def step(self) -> int:
        """Updates done."""
        return self.state.step

    @property
    def base_sha256(self) -> str:
        """SHA-256 of the weights that the run began with."""
        return self.identity["base_sha256"]

    @property
    def exact_weights(self) -> Path | None:
        """The file with the exact weights of `resumed_from`, where its model's are rounded."""
        return checkpoint.exact_weights(self.resumed_from)

    @property
    def data_before(self) -> str | None:
        """The fingerprint of the data that `resumed_from` was trained on."""
        return checkpoint.recorded(self.resumed_from, "data_fingerprint")

    @property
    def generates(self) -> bool:
        """Whether this rank is to generate text: the first one; with --fsdp all of them must."""
        return self.ranks.is_main or self.args.fsdp

    @property
    def asked_to_stop(self) -> Stopping | None:
        """What to give to code that may end early on one rank alone; None with --fsdp."""
        return None if self.args.fsdp else self.stop

    def say(self, text: str):
        """Print a line, on the first rank."""
        if self.ranks.is_main:
            print(text, flush=True)

    # ---- model, data, optimizer: steps 4 to 9

    def place(self, model: nn.Module, packed: bool = False) -> nn.Module:
        """The model on this rank's device, or its shard of it, in training mode.

        The first time a micro-batch is tried, with several documents in a row if packed;
        --auto_batch sets batch_size and accumulation_steps by it.
        """
        model = shard(model, self.ranks, self.args) if self.args.fsdp else model.to(self.device)
        self.model = model.train()
        model.activation_checkpointing = self.args.activation_checkpointing
        if not self._has_tried_memory:
            fit_memory(model, self.args, self.ranks, self.autocast, packed)
            self._has_tried_memory = True
        return model

    def loader(
        self, dataset, val_dataset=None, count: Callable | None = None, unit: str = "tokens"
    ) -> DataLoader:  # fmt: skip
        """Micro-batches of the dataset in an order that depends on seed and epoch alone.

        Every rank gets its share of it. count(rows): how much of what the loss is a mean over each
        row has, the dataset's loss_tokens or another number; unit: "tokens", "pairs", "examples".
        What a dataset has to offer: docs/extending.md.
        """
        args, self.dataset, self.val_dataset, self.unit = self.args, dataset, val_dataset, unit
        most = [d.documents_per_row for d in (dataset, val_dataset) if d]
        self.model.documents_per_row = None if None in most else max(most)
        self.sampler = UpdateSampler(
            len(dataset), count or dataset.loss_tokens, args.batch_size, args.accumulation_steps,
            self.ranks.rank, self.ranks.world_size, args.seed,
        )  # fmt: skip
        self.total_steps = args.max_steps or args.epochs * self.sampler.updates_per_epoch
        return make_loader(dataset, self.sampler, self.device, args.num_workers)

    def compile(self, function: Callable) -> Callable:
        """A function or module as --compile asks for it."""
        args = self.args
        kind = args.compile, self.device, self.total_steps, args.cuda_graphs
        return compute.compiler(*kind)(function)

    def parallel(self, model: nn.Module) -> nn.Module:
        """What to call in place of the model in training: compiled, gradients averaged."""
        self.compiled = self.compile(model)
        is_sharded = self.args.fsdp
        self._parallel = self.compiled if is_sharded else data_parallel(self.compiled, self.ranks)
        return self._parallel

    def begin(
        self, optimizer, scaler, measure: Callable[[], tuple[dict, list[str]]],
        write_model: Callable[[Path, dict], None],
    ):  # fmt: skip
        """Take up the state of a checkpoint, say what is going to happen, measure for a first time.

        measure()                     held-out figures, "val_loss" among them or "val_reward", and
                                      lines to print below them; called where there is a val_dataset
        write_model(folder, weights)  writes what other tools open; weights: name -> Tensor, of
                                      all that is trained
        """
        args, ranks, dataset = self.args, self.ranks, self.dataset
        self.optimizer, self.scaler = optimizer, scaler
        self._measure, self._write_model = measure, write_model
        self.identity["data_fingerprint"] = dataset.fingerprint
        self.state = first_state(
            self.resumed_from, self.identity, self.total_steps, self.model, optimizer, scaler, args,
            ranks, eval_due=self.val_dataset is not None,
        )  # fmt: skip
        self.log = open_log(self)
        self.watch = LossWatch(args.max_bad_steps, self.state, self.log, dataset, self.sampler)
        self.writer = CheckpointWriter(args.out_dir, args.keep_checkpoints, ranks.is_main)
        self.stop.begin_training()  # from here on a signal waits for the end of the update
        if self.state.eval_due and self.val_dataset:
            self._evaluate()

    # ---- the loop: steps 10 to 19

    def epochs(self) -> Iterator[int]:
        """The epochs that are left, from the one that the state stands in."""
        per_epoch = self.sampler.updates_per_epoch
        for epoch in range(self.state.step // per_epoch, -(-self.total_steps // per_epoch)):
            if not self.stop.agreed:
                yield epoch

    def batches(self, loader: DataLoader, epoch: int) -> Iterator[tuple[Tensor, ...]]:
        """The micro-batches that are left of an epoch, on the device."""
        per_epoch, state = self.sampler.updates_per_epoch, self.state
        self.watch.settle()  # while the sampler still knows the rows of the epoch before
        self.sampler.set_position(epoch, first_update=state.step % per_epoch)
        self.epoch, self._sums, self.inner_left, self._inner_step = epoch, 0, 0, 1
        batches = on_device(self.log.waiting(loader), self.device)
        for number, batch in enumerate(batches, start=1):
            if state.step >= self.total_steps:  # what a resumed run has measured was all
                return
            micro_step = number % self.args.accumulation_steps
            self.at_boundary = micro_step == 0  # the last micro-batch of an update
            self.update_size = self.sampler.tokens_in_update(state.step % per_epoch)
            seed_dropout(self.args.seed, state.step, micro_step, self.ranks.rank)
            yield batch
            if self.stop.agreed or state.step >= self.total_steps:
                return

    def inner_updates(self, steps: list[list]) -> Iterator:
        """Micro-batches of an update's optimizer steps. inner_left = 0: this step is the last."""
        self._part = self.ranks.world_size
        for self._inner_step, batches in enumerate(steps, start=1):
            self.inner_left = len(steps) - self._inner_step
            for number, batch in enumerate(batches, start=1):
                self.at_boundary = number == len(batches)
                number += 2**16 * (self._inner_step - 1)
                seed_dropout(self.args.seed, self.state.step, number, self.ranks.rank)
                yield batch
            if not self.inner_left:
                return

    def gradient_sync(self) -> AbstractContextManager:
        """Around forward and backward: ranks share gradients at the accumulation boundary alone."""
        return gradient_sync(self._parallel, self.at_boundary)

    def share(self, counted: Tensor) -> Tensor:
        """How much of `update_size`, which the loss is a mean over, is in here; the mean is 1.

        counted: a mask, or numbers, whose sum is that. Multiplied with the loss it makes every
        token (or pair) of the update weigh the same, however full the rows are.
        """
        micro_batches = self.args.accumulation_steps * self.ranks.world_size
        share = counted.sum() / (self.update_size / micro_batches)
        self._part = share / self.args.accumulation_steps
        return share

    def count(self, **values: Tensor):
        """Add a micro-batch's figures, means or in inner updates parts of sums; the loss first."""
        self._names = tuple(values)
        parts = torch.stack([value.detach() for value in values.values()])
        self._sums = self._sums + parts * self._part

    def skip_unless_finite(self, grad_norm: Tensor):
        """Let the optimizer's next step do nothing if loss or gradient, on any rank, is not finite.

        Its rows are named; --max_bad_steps in a row are the most.
        """
        self._means = sum_over_ranks(self._sums / self._inner_step) / self.ranks.world_size
        if not self.inner_left:  # else a bad one lets the inner updates after it do nothing, too
            self._sums = 0
        skip_unless_finite(self.optimizer, self.scaler, self._means[0], grad_norm)

    def update_done(self, lr: float, grad_norm: Tensor):
        """Count the update; log it and measure held-out figures where these are due."""
        if self.inner_left:
            return
        args, state, unit = self.args, self.state, self.unit
        self.watch.note(state.step, self._means, grad_norm, self.scaler.is_enabled())
        state.step += 1
        setattr(state, unit, getattr(state, unit) + self.update_size)
        self.log.step(self.update_size)
        if self._is_due(args.log_interval) and self.watch.settle():  # not if it was skipped
            values = dict(zip(self._names, self.watch.means()))  # since the last line
            values |= {"lr": lr, "grad_norm": grad_norm.item()}
            if self.config.use_moe:
                values["max_expert_load"] = self.model.expert_load.max().item()
            else:
                values.pop("aux_loss", None)
            if self.scaler.is_enabled():
                values["loss_scale"] = self.scaler.get_scale()
            counted = {"epoch": self.epoch, unit: getattr(state, unit)}
            self.log.metrics(state.step, speed=unit, **counted, **values)
        if self.val_dataset and self._is_due(args.eval_interval):
            self.watch.settle()
            state.eval_due = True
            self._evaluate()

    def save_if_due(self):
        """Save in the background; a signal to stop reaches all ranks at the same update."""
        if self.inner_left or not (self.stop.agree() or self._is_due(self.args.save_interval)):
            return
        self.watch.settle()
        self.state.metrics_lines = self.log.lines
        saved = self.identity | asdict(self.state) | {"scaler": self.scaler.state_dict()}
        self.writer.save(self.model, self.optimizer, saved, self._write_model)
        self.log.pause_clock()

    def close(self) -> int:
        """Finish what is being written; 128 + its number if a signal ended the run, else 0."""
        self.writer.close()
        self.log.end(self.state.step, self.stop.agreed)
        return self.stop.leave()

    def _is_due(self, interval: int) -> bool:
        return self.state.step % interval == 0 or self.state.step == self.total_steps

    def _evaluate(self):
        """Held-out figures; what a signal interrupts is measured after a resume."""
        figures, lines = self._measure()
        if not self.stop.agree():
            self.log.held_out(self.state, figures, lines)
