"""Pretraining: a language model from nothing, by predicting the next token of raw text.

    python train_pretrain.py                                       # the embedded demo corpus
    python train_pretrain.py --preset small --data_path my.jsonl   # one {"text": ...} per line
    torchrun --nproc_per_node 8 train_pretrain.py --preset base --data_path a.jsonl b.parquet

The numbers in the comments are the steps of the training sequence that every script here follows.
Steps, intervals and warmup count optimizer steps. Started again with the same command, a run goes
on from its newest checkpoint.
"""

from functools import partial
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from dataset.demo import write_demo
from dataset.packing import split_documents, whole_stream
from dataset.pretrain import PretrainDataset
from dataset.sampler import UpdateSampler
from dataset.token_cache import cached_tokens
from dataset.tokenizer import load_tokenizer
from model.hf_format import inherited, load_model, save_model
from model.model import MiniMindLM
from training import checkpoint, cli
from training.distributed import (
    building_device,
    gradient_sync,
    init_distributed,
    local_main_first,
    seed_dropout,
    shard,
    shutdown,
    sum_over_ranks,
    whole,
)
from training.evaluation import continue_text, held_out_loss
from training.loss_watch import LossWatch
from training.losses import masked_cross_entropy
from training.lr_schedule import learning_rate
from training.memory import fit_memory
from training.optimizers import build_optimizer, skip_unless_finite
from training.run_log import RunLog
from training.speed import flops_per_token
from training.start import DEMO_DATA, begin, first_state
from training.stopping import Stopping, ignore_signals
from training.writer import CheckpointWriter


def parse_args():
    parser = cli.new_parser(__doc__)
    cli.add_model_flags(parser)  # --preset and one flag for every LMConfig field

    add = parser.add_argument_group("data").add_argument
    text = "jsonl, json, txt, csv, parquet, arrow files, also .gz, .zst; None: the demo corpus"
    add("--data_path", nargs="+", default=None, help=text)
    add("--val_data_path", nargs="+", default=None, help="held-out files, in place of a fraction")
    add("--text_field", default="text", help="field of the records that holds the text")
    text = "share of the documents held out for evaluation"
    add("--val_fraction", type=cli.in_range(0, 0.5), default=0.01, help=text)
    text = "model folder or run to start from; None: random weights"
    add("--init_from", type=Path, default=None, help=text)
    text = "tokenizer folder; None: --init_from's, else this repository's model/tokenizer"
    add("--tokenizer", type=Path, default=None, help=text)
    add("--max_seq_len", type=cli.at_least(1), default=256, help="tokens per row")

    cli.add_training_flags(parser, epochs=1, batch_size=4, learning_rate=2e-3, weight_decay=0.1)
    cli.add_run_flags(parser, out_dir="out/pretrain")
    return parser.parse_args()  # (1) parse the command line


def main():
    args = parse_args()
    if args.init_from is not None:
        args.init_from = checkpoint.model_folder(args.init_from, "--init_from")
    tokenizer = load_tokenizer(args.tokenizer or args.init_from or cli.TOKENIZER)

    # (2) the architecture
    config = cli.build_config(args, tokenizer.vocab_size)

    # (3) under torchrun: join the process group, take this rank's device
    ranks = init_distributed(args.device, args.deterministic)
    device, stop = ranks.device, Stopping(ranks)
    cli.check_cuda_graphs(args, ranks, config)
    dtype = cli.choose_dtype(args.dtype, device)
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)

    # (4) the model: resumed, loaded, or new
    resumed_from, identity = begin(args, ranks, config)  # what needs no data is checked first
    if identity is None:  # the run has all its steps
        return
    torch.manual_seed(args.seed)  # the same first weights on every rank
    home = building_device(ranks, args.fsdp)  # the CPU; with --fsdp the first rank's alone
    base = inherited(args.init_from) if args.init_from else None
    if resumed_from or args.init_from:
        exact = checkpoint.exact_weights(resumed_from)
        model = load_model(resumed_from or args.init_from, home, config=config, weights_file=exact)
    else:
        with home:
            model = MiniMindLM(config)
    model = shard(model, ranks, args) if args.fsdp else model.to(device)
    model.train()
    model.activation_checkpointing = args.activation_checkpointing
    # a micro-batch is tried; --auto_batch sets batch_size and accumulation_steps
    fit_memory(model, args, ranks, autocast)

    # (5) the dataset: tokenised once into a cache, by one process of each machine
    with local_main_first(ranks):
        cached = partial(
            cached_tokens, tokenizer=tokenizer, cache_dir=args.cache_dir,
            on_bad_record=args.on_bad_record, text_field=args.text_field,
        )  # fmt: skip
        data_path = args.data_path or [write_demo(DEMO_DATA)["pretrain.jsonl"]]
        files = [cached(path) for path in data_path]
        val_files = [cached(path, flag="--val_data_path") for path in args.val_data_path or []]
    if val_files:
        stream, val_stream = whole_stream(files), whole_stream(val_files)
    else:
        stream, val_stream = split_documents(files, args.val_fraction)
    data_before = checkpoint.recorded(resumed_from, "data_fingerprint")
    dataset = PretrainDataset(
        stream, args.max_seq_len, documents_first=True, going_on_from=data_before
    )
    val_dataset = PretrainDataset(val_stream, args.max_seq_len) if val_stream else None

    # (6) the loader: an order that depends on seed and epoch alone, shared out among the ranks
    sampler = UpdateSampler(
        len(dataset), dataset.loss_tokens, args.batch_size, args.accumulation_steps,
        ranks.rank, ranks.world_size, args.seed,
    )  # fmt: skip
    loader = DataLoader(
        dataset, batch_sampler=sampler, num_workers=args.num_workers,
        pin_memory=device.type == "cuda", worker_init_fn=ignore_signals,
    )  # fmt: skip
    total_steps = args.max_steps or args.epochs * sampler.updates_per_epoch
    epochs = -(-total_steps // sampler.updates_per_epoch)
    compile = cli.compiler(args.compile, device, total_steps, args.cuda_graphs)
    compiled, masked_loss = compile(model), compile(masked_cross_entropy)

    # (7) the optimizer, (8) the scaler, which does something for float16 alone
    optimizer = build_optimizer(args.optimizer, model, args.learning_rate, args.weight_decay, dtype)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    # (9) several processes: average the gradients
    wrapped = compiled
    if ranks.is_distributed and not args.fsdp:
        wrapped = DistributedDataParallel(compiled)

    # what a checkpoint must agree on to be continued, and what a run remembers beside its weights
    identity["data_fingerprint"] = dataset.fingerprint
    state = first_state(
        resumed_from, identity, total_steps, model, optimizer, scaler, args, ranks,
        eval_due=val_dataset is not None,
    )  # fmt: skip
    if state is None:
        return

    def write_model(folder: Path, weights: dict):
        save_model(model, folder, tokenizer.eos_id, weights, base)
        tokenizer.save(folder, chat_template=False)  # a base model does not chat

    positions = sampler.rows_per_update * args.max_seq_len  # of an update
    flops = flops_per_token(model, args.max_seq_len / 2) * positions
    log = RunLog(args.out_dir, total_steps, state, ranks.is_main, args, flops, ranks, dtype)
    log.say(
        f"{model.num_parameters() / 1e6:.1f}M parameters, {dataset.num_tokens:,} training tokens, "
        f"{total_steps:,} steps of {positions:,} tokens, on {device} in "
        f"{str(dtype).removeprefix('torch.')}"
    )
    if resumed_from:
        log.say(f"going on from {resumed_from}")

    def evaluate():
        """The held-out loss and a continuation. What a signal interrupts is done after a resume."""
        result = held_out_loss(
            compiled, val_dataset, args.batch_size, tokenizer.token_bytes, ranks, autocast, stop
        )
        shown = ""
        if ranks.is_main or args.fsdp:
            opening = val_dataset[0][0][:16].tolist()
            shown = continue_text(model, tokenizer, opening, 60, args.seed)
        if stop.agree():
            return
        log.held_out(state, result["loss"], val_bits_per_byte=result["bits_per_byte"])
        log.say(f"    {shown}")

    watch = LossWatch(args.max_bad_steps, state, log, dataset, sampler)
    writer = CheckpointWriter(args.out_dir, args.keep_checkpoints, ranks.is_main)
    stop.begin_training()  # from here on a signal waits for the end of the update
    if state["eval_due"] and val_dataset:
        evaluate()

    # (10) for every epoch, for every batch
    step = state["step"]
    for epoch in range(step // sampler.updates_per_epoch, epochs):
        if stop.agreed:
            break
        watch.settle()  # while the sampler still knows the rows of the epoch before
        sampler.set_position(epoch, first_update=step % sampler.updates_per_epoch)
        update_metrics = torch.zeros(2, device=device)  # cross-entropy, auxiliary loss
        for micro_step, (X, Y, loss_mask) in enumerate(log.waiting(loader), start=1):
            if step >= total_steps:
                break
            X, Y, loss_mask = (t.to(device, non_blocking=True) for t in (X, Y, loss_mask))
            micro_step %= args.accumulation_steps  # 0 at the accumulation boundary
            seed_dropout(args.seed, step, micro_step, ranks.rank)

            # (11) set the learning rate
            lr = learning_rate(
                step, args.learning_rate, args.warmup_steps, total_steps, args.min_lr_ratio
            )
            for group in optimizer.param_groups:
                group["lr"] = lr

            # between the boundaries, ranks keep their gradients to themselves
            with gradient_sync(wrapped, at_boundary=micro_step == 0):
                # (12) forward, (13) masked cross-entropy, (14) the experts' auxiliary loss
                with autocast:
                    logits, aux_loss = wrapped(X)
                    cross_entropy = masked_loss(logits, Y, loss_mask)
                    loss = cross_entropy + aux_loss

                # (15) divide by the accumulation steps. `share` is this micro-batch's number of
                # targets over the update's mean: 1 where rows are full, and where they are not,
                # every token of the update still weighs the same
                update_tokens = sampler.tokens_in_update(step % sampler.updates_per_epoch)
                mean_tokens = update_tokens / (args.accumulation_steps * ranks.world_size)
                share = loss_mask.sum() / mean_tokens
                loss = loss * share / args.accumulation_steps

                # (16) scale, backward
                scaler.scale(loss).backward()
            parts = torch.stack((cross_entropy.detach(), aux_loss.detach()))
            update_metrics += parts * share / args.accumulation_steps
            if micro_step != 0:
                continue

            # (17) unscale, clip, step, update the scaler, zero the gradients. A loss or gradient
            # that is not finite, on whatever rank, skips the update on all of them. whole():
            # with --fsdp every rank has a shard of the norm
            scaler.unscale_(optimizer)
            max_norm = args.grad_clip or float("inf")
            grad_norm = whole(torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm))
            means = sum_over_ranks(update_metrics) / ranks.world_size
            skip_unless_finite(optimizer, scaler, means[0], grad_norm)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            watch.note(step, means, grad_norm, scaler.is_enabled())
            step += 1
            state["tokens"] += update_tokens
            log.step(update_tokens)

            # (18) print and log to wandb unless it was skipped, measure the held-out loss
            if (step % args.log_interval == 0 or step == total_steps) and watch.settle():
                mean_loss, mean_aux_loss = watch.means()  # since the last line
                values = {"loss": mean_loss, "lr": lr, "grad_norm": grad_norm.item()}
                if config.use_moe:
                    values["aux_loss"] = mean_aux_loss
                    values["max_expert_load"] = model.expert_load.max().item()
                if scaler.is_enabled():
                    values["loss_scale"] = scaler.get_scale()
                log.metrics(step, speed="tokens", epoch=epoch, tokens=state["tokens"], **values)
            update_metrics.zero_()
            if val_dataset and (step % args.eval_interval == 0 or step == total_steps):
                watch.settle()
                state |= {"step": step, "eval_due": True}
                evaluate()

            # (19) save; a signal to stop reaches all ranks at the same update
            stopping = stop.agree()
            if step % args.save_interval == 0 or step == total_steps or stopping:
                watch.settle()
                state |= identity | {"step": step, "metrics_lines": log.lines}
                state["scaler"] = scaler.state_dict()
                writer.save(model, optimizer, state, write_model)
                log.pause_clock()
            if stopping:
                break

    writer.close()
    log.end(step, stop.agreed)
    del wrapped  # it uses the process group, and must not outlive it
    shutdown()
    stop.leave()  # with status 143 or 130 if a signal ended the run


if __name__ == "__main__":
    cli.run(main)
