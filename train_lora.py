"""Fine-tuning with low-rank adapters: the base keeps its bits, a small addition learns.

    python train_lora.py                                      # out/full_sft, the demo's toy shop
    python train_lora.py --init_from Qwen3-0.6B --data_path chats.jsonl --lora_rank 16
    python eval_model.py --model out/full_sft --lora out/lora

train_full_sft.py with three differences: adapters are attached to the loaded model, they alone are
trained, and they alone are saved, as a PEFT folder (model/lora.py holds the equation).
"""

from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from dataset.chat import choose_template
from dataset.conversations import read_conversations
from dataset.demo import write_demo
from dataset.records import Problems
from dataset.sampler import UpdateSampler
from dataset.sft import EncodedConversations, SFTDataset, repeats_by_weight
from dataset.tokenizer import load_tokenizer
from model import lora
from model.hf_format import load_model
from training import checkpoint, cli
from training.distributed import (
    building_device,
    gradient_sync,
    init_distributed,
    seed_dropout,
    shard,
    shutdown,
    sum_over_ranks,
    whole,
)
from training.evaluation import ask, exact_match, first_questions, held_out_loss, read_questions
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

SEQ_LEN = 1024  # tokens per row: all but a few conversations of real data fit (docs/decisions.md)


def parse_args():
    parser = cli.new_parser(__doc__)
    cli.add_model_flags(parser, of_a_loaded_model=True)
    cli.add_lora_flags(parser, rank=8)

    add = parser.add_argument_group("data").add_argument
    text = "one or several files of conversations; None: the demo corpus"
    add("--data_path", nargs="+", default=None, help=text)
    text = "per file, how often its conversations are taken in an epoch; None: once"
    add("--data_weights", type=cli.in_range(0, 1e3), nargs="+", default=None, help=text)
    add("--val_data_path", nargs="+", default=None, help="held-out files, in place of a fraction")
    text = "share of the conversations held out for evaluation"
    add("--val_fraction", type=cli.in_range(0, 0.5), default=0.02, help=text)
    text = 'file of {"question", "answer"} whose greedy answers must be exact; None: the demo\'s '
    add("--questions", type=Path, default=None, help=text + "if --data_path is")
    text = "model folder or run to adapt: ours or any dense Qwen3"
    add("--init_from", type=Path, default=Path("out/full_sft"), help=text)
    cli.add_seq_len_flag(add, SEQ_LEN)
    text = "several whole conversations in a row; without: one, for comparison"
    add("--packing", **cli.BOOL, default=True, help=text)

    cli.add_training_flags(parser, epochs=2, batch_size=4, learning_rate=2e-3, weight_decay=0.0)
    cli.add_run_flags(parser, out_dir="out/lora")
    return parser.parse_args()  # (1) parse the command line


def main():
    args = parse_args()
    args.init_from = checkpoint.model_folder(args.init_from, "--init_from")
    tokenizer = load_tokenizer(args.init_from)

    # (2) the architecture
    config = cli.build_config(args, tokenizer.vocab_size, SEQ_LEN)

    # (3) under torchrun: join the process group, take this rank's device
    ranks = init_distributed(args.device, args.deterministic)
    device, stop = ranks.device, Stopping(ranks)
    cli.check_cuda_graphs(args, ranks, config)
    dtype = cli.choose_dtype(args.dtype, device)
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)

    # (4) the model: the base, frozen, and adapters: resumed or new
    adapter = cli.build_lora(args, config)
    resumed_from, identity = begin(args, ranks, config, adapter)  # needs no data
    if identity is None:  # the run has all its steps
        return
    base_sha256 = identity["base_sha256"]
    model = load_model(args.init_from, building_device(ranks, args.fsdp), config=config)
    torch.manual_seed(args.seed)  # the same first adapters on every rank
    lora.attach(model, adapter)
    if resumed_from:
        lora.load_adapter(model, resumed_from, base_sha256)
    model = shard(model, ranks, args) if args.fsdp else model.to(device)
    model.train()
    model.activation_checkpointing = args.activation_checkpointing
    # a micro-batch is tried; --auto_batch sets batch_size and accumulation_steps
    fit_memory(model, args, ranks, autocast, packed=True)

    # (5) the dataset: conversations encoded with their masks, packed whole into rows
    data_path = args.data_path
    if data_path is None:
        demo = write_demo(DEMO_DATA)
        data_path = [demo["lora.jsonl"]]
        args.questions = args.questions or demo["lora_questions.jsonl"]
    all_paths = [*data_path, *(args.val_data_path or [])]
    choose_template(tokenizer, read_conversations(all_paths, args.on_bad_record))
    problems = Problems()
    conversations = read_conversations(data_path, args.on_bad_record, problems)
    encoded = EncodedConversations(conversations, tokenizer, args.max_seq_len)
    if args.val_data_path:
        conversations = read_conversations(
            args.val_data_path, args.on_bad_record, problems, flag="--val_data_path"
        )
        val_encoded = EncodedConversations(conversations, tokenizer, args.max_seq_len)
    else:
        encoded, val_encoded = encoded.split(args.val_fraction)
    repeats = None
    if args.data_weights:
        repeats = repeats_by_weight(encoded, cli.paired(data_path, args.data_weights))
    dataset = SFTDataset(encoded, args.max_seq_len, args.packing, repeats)
    val_dataset = SFTDataset(val_encoded, args.max_seq_len) if len(val_encoded) else None
    model.documents_per_row = max(d.documents_per_row for d in (dataset, val_dataset) if d)
    if args.questions:
        questions = read_questions(args.questions, tokenizer)
    else:
        questions = first_questions(val_encoded, tokenizer, 3)

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
        lora.save_adapter(model, adapter, folder, args.init_from, base_sha256, weights)
        tokenizer.save(folder, chat_template=True)

    positions = sampler.rows_per_update * args.max_seq_len  # of an update
    flops = flops_per_token(model, args.max_seq_len / 2) * positions
    log = RunLog(args.out_dir, total_steps, state, ranks.is_main, args, flops, ranks, dtype)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    log.say(
        f"{trained / 1e6:.2f}M of {model.num_parameters() / 1e6:.1f}M parameters, "
        f"{total_steps:,} steps of {sampler.rows_per_update} rows, on {device} in "
        f"{str(dtype).removeprefix('torch.')}"
    )
    log.say(f"data: {dataset.summary()}")
    for line in problems.lines():
        log.say(line)
    if resumed_from:
        log.say(f"going on from {resumed_from}")

    def evaluate():
        """The held-out loss and a few answers. What a signal interrupts is done after a resume."""
        result = held_out_loss(
            compiled, val_dataset, args.batch_size, tokenizer.token_bytes, ranks, autocast, stop
        )
        answers = []
        if ranks.is_main or args.fsdp:
            answers = ask(model, tokenizer, questions, stop=None if args.fsdp else stop)
        if stop.agree():
            return
        values = {}
        if args.questions and ranks.is_main:
            values["exact_match"] = exact_match(questions, answers)
        log.held_out(state, result["loss"], **values)
        for question, answer in list(zip(questions, answers))[:3]:
            log.say(f"    {question.text} ⟶ {' '.join(answer.split())}")

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
        for micro_step, batch in enumerate(log.waiting(loader), start=1):
            if step >= total_steps:
                break
            X, Y, loss_mask, document_ids = (t.to(device, non_blocking=True) for t in batch)
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
                    logits, aux_loss = wrapped(X, document_ids)
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
