"""Direct preference optimisation: of two answers to a prompt, make the chosen one likelier.

    python train_dpo.py                                       # out/full_sft, the demo's pairs
    python train_dpo.py --init_from out/full_sft --data_path pairs.jsonl --loss simpo
    torchrun --nproc_per_node 8 train_dpo.py --init_from Qwen3-0.6B --data_path pairs.jsonl

The same sequence of steps as train_pretrain.py, with the loss of `preference_loss` below. The
reference is the model this starts from: its log-probabilities are computed once, before training,
and kept in a file, so that training holds one model. With --lora_rank only adapters are trained.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from dataset.chat import choose_template, stop_ids
from dataset.demo import write_demo
from dataset.dpo import DPODataset, EncodedPairs
from dataset.pairs import read_pairs
from dataset.records import Problems
from dataset.sampler import UpdateSampler
from dataset.tokenizer import load_tokenizer
from model import lora
from model.hf_format import inherited, load_model, save_model
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
from training.evaluation import ask, exact_match, read_questions
from training.loss_watch import LossWatch
from training.losses import document_log_probs
from training.lr_schedule import learning_rate
from training.memory import fit_memory
from training.optimizers import build_optimizer, skip_unless_finite
from training.reference import pair_log_probs, reference_log_probs
from training.run_log import RunLog
from training.speed import flops_per_token
from training.start import DEMO_DATA, begin, first_state
from training.stopping import Stopping, ignore_signals
from training.writer import CheckpointWriter

METRICS = (
    "loss", "accuracy", "margin", "chosen_reward", "rejected_reward", "chosen_log_prob",
    "rejected_log_prob",
)  # fmt: skip


SEQ_LEN = (
    4096  # tokens per row: both answers of all but a few pairs of real data fit (docs/decisions.md)
)
# flags that belong to one loss alone
OF_A_LOSS = {
    "sigmoid": (), "ipo": (), "robust": ("label_smoothing",), "simpo": ("simpo_gamma",), "orpo": (),
}  # fmt: skip
WITHOUT_REFERENCE = ("simpo", "orpo")  # they take the mean log-probabilities of tokens


def preference_loss(policy, reference, lengths, args):
    """The loss of every pair [...], and METRICS of every pair [..., 7].

    policy, reference  [..., 2]: log-probability of the whole chosen, of the whole rejected answer;
                       some losses have no reference
    lengths            [..., 2]: their tokens
    """
    beta = args.beta
    has_reference = args.loss not in WITHOUT_REFERENCE
    log_ratios = policy - reference if has_reference else policy / lengths
    delta = log_ratios[..., 0] - log_ratios[..., 1]
    if args.loss == "sigmoid":  # DPO (Rafailov et al. 2023): -log σ(β Δ)
        loss = -F.logsigmoid(beta * delta)
    elif args.loss == "ipo":  # Azar et al. 2023, with means over tokens: (Δ - 1 / 2β)²
        per_token = log_ratios / lengths
        loss = (per_token[..., 0] - per_token[..., 1] - 1 / (2 * beta)) ** 2
    elif args.loss == "robust":  # Chowdhury et al. 2024: a share ε of the labels is wrong
        eps = args.label_smoothing
        right, wrong = F.logsigmoid(beta * delta), F.logsigmoid(-beta * delta)
        loss = -((1 - eps) * right - eps * wrong) / (1 - 2 * eps)
    elif args.loss == "simpo":  # Meng et al. 2024: means over tokens, a target margin γ
        loss = -F.logsigmoid(beta * delta - args.simpo_gamma)
    else:  # ORPO (Hong et al. 2024): the chosen answer's own loss, and the ratio of the two odds,
        # p / (1 - p) with means over tokens as log p
        log_odds = log_ratios - (-torch.expm1(log_ratios.clamp(max=-1e-6))).log()
        loss = -log_ratios[..., 0] - beta * F.logsigmoid(log_odds[..., 0] - log_odds[..., 1])
    if args.sft_weight:  # keep the chosen answers likely: their loss in nats per token
        loss = loss - args.sft_weight * policy[..., 0] / lengths[..., 0]
    rewards = beta * log_ratios
    margin = rewards[..., 0] - rewards[..., 1]
    accuracy = ((margin > 0).float() + (margin >= 0).float()) / 2  # a tie, as at step 0, is half
    values = (loss, accuracy, margin, *rewards.unbind(-1), *policy.unbind(-1))
    return loss, torch.stack([value.detach() for value in values], dim=-1)


def parse_args():
    parser = cli.new_parser(__doc__)
    cli.add_model_flags(parser, of_a_loaded_model=True)
    cli.add_lora_flags(parser, rank=0)

    add = parser.add_argument_group("preferences").add_argument
    text = "of a pair: sigmoid is DPO, ipo, robust (wrong labels), simpo and orpo (no reference)"
    add("--loss", choices=list(OF_A_LOSS), default="sigmoid", help=text)
    add("--beta", type=cli.in_range(1e-6, 1e3), default=0.1, help="strength of the reference")
    text = "robust: share of pairs whose labels are taken to be wrong"
    add("--label_smoothing", type=cli.in_range(0, 0.49), default=0.1, help=text)
    add("--simpo_gamma", type=cli.in_range(0, 100), default=0.5, help="simpo: target margin")
    text = "weight of the chosen answers' own loss (nats per token); 0: none"
    add("--sft_weight", type=cli.in_range(0, 1e3), default=0.0, help=text)

    add = parser.add_argument_group("data").add_argument
    text = "one or several files of pairs; None: the demo corpus"
    add("--data_path", nargs="+", default=None, help=text)
    add("--val_data_path", nargs="+", default=None, help="held-out files, in place of a fraction")
    text = "share of the pairs held out for evaluation"
    add("--val_fraction", type=cli.in_range(0, 0.5), default=0.1, help=text)
    text = 'file of {"question", "answer"} whose greedy answers must be exact; None: the demo\'s '
    add("--questions", type=Path, default=None, help=text + "if --data_path is")
    text = "model folder or run to start from, the reference"
    add("--init_from", type=Path, default=Path("out/full_sft"), help=text)
    cli.add_seq_len_flag(add, SEQ_LEN)

    cli.add_training_flags(parser, epochs=1, batch_size=2, learning_rate=5e-5, weight_decay=0.0)
    cli.add_run_flags(parser, out_dir="out/dpo")
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

    # (4) the model, which is still the reference
    is_lora = args.lora_rank > 0
    adapter = cli.build_lora(args, config) if is_lora else None
    # what needs no data is checked first
    loss_flags = {name: getattr(args, name) for name in ("loss", "beta", *OF_A_LOSS[args.loss])}
    resumed_from, identity = begin(args, ranks, config, adapter, **loss_flags)
    if identity is None:  # the run has all its steps
        return
    base_sha256 = identity["base_sha256"]
    base = inherited(args.init_from)
    home = building_device(ranks, args.fsdp)  # the CPU; with --fsdp the first rank's alone

    def build(checkpoint_folder: Path | None):
        """The base, with an adapter that adds nothing yet if there is one; or a checkpoint's."""
        saved = None if is_lora else checkpoint_folder
        exact = checkpoint.exact_weights(saved)
        model = load_model(saved or args.init_from, home, config=config, weights_file=exact)
        if is_lora:
            torch.manual_seed(args.seed)  # the same first adapters on every rank
            lora.attach(model, adapter)
        if is_lora and checkpoint_folder:
            lora.load_adapter(model, checkpoint_folder, base_sha256)
        return shard(model, ranks, args) if args.fsdp else model.to(device)

    model = build(None).train()
    model.activation_checkpointing = args.activation_checkpointing
    # a micro-batch is tried; --auto_batch sets batch_size and accumulation_steps
    fit_memory(model, args, ranks, autocast, packed=True)

    # (5) the dataset: both answers of a pair in one row, and what the reference says of them
    data_path = args.data_path
    if data_path is None:
        demo = write_demo(DEMO_DATA)
        data_path, args.questions = [demo["dpo.jsonl"]], args.questions or demo["questions.jsonl"]
    all_paths = [*data_path, *(args.val_data_path or [])]
    choose_template(tokenizer, read_pairs(all_paths, args.on_bad_record))
    problems = Problems()
    pairs = read_pairs(data_path, args.on_bad_record, problems=problems)
    encoded = EncodedPairs(pairs, tokenizer, args.max_seq_len)
    if args.val_data_path:
        pairs = read_pairs(args.val_data_path, args.on_bad_record, "--val_data_path", problems)
        val_encoded = EncodedPairs(pairs, tokenizer, args.max_seq_len)
    else:
        encoded, val_encoded = encoded.split(args.val_fraction)
    dataset = DPODataset(encoded, args.max_seq_len)
    val_dataset = DPODataset(val_encoded, args.max_seq_len) if len(val_encoded) else None
    questions = read_questions(args.questions, tokenizer) if args.questions else []
    reference, val_reference = (
        reference_log_probs(
            model, part, args.batch_size, ranks, autocast, f"{base_sha256} {dtype}", args.cache_dir
        )
        for part in (dataset, val_dataset or dataset)
    )
    lengths = dataset.answer_lengths.to(device)

    # from here on the model is the policy: all of its weights, or adapters
    if resumed_from:
        model = build(resumed_from)
    model.train()
    model.activation_checkpointing = args.activation_checkpointing
    model.documents_per_row = max(d.documents_per_row for d in (dataset, val_dataset) if d)

    # (6) the loader: an order that depends on seed and epoch alone, shared out among the ranks
    sampler = UpdateSampler(
        len(dataset), dataset.num_pairs, args.batch_size, args.accumulation_steps,
        ranks.rank, ranks.world_size, args.seed,
    )  # fmt: skip
    loader = DataLoader(
        dataset, batch_sampler=sampler, num_workers=args.num_workers,
        pin_memory=device.type == "cuda", worker_init_fn=ignore_signals,
    )  # fmt: skip
    total_steps = args.max_steps or args.epochs * sampler.updates_per_epoch
    epochs = -(-total_steps // sampler.updates_per_epoch)
    compile = cli.compiler(args.compile, device, total_steps, args.cuda_graphs)
    compiled, log_probs_of = compile(model), compile(document_log_probs)

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
        if adapter:
            lora.save_adapter(model, adapter, folder, args.init_from, base_sha256, weights)
        else:
            save_model(model, folder, stop_ids(tokenizer), weights, base)
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
        """Held-out pairs and answers. What a signal interrupts is done after a resume."""
        policy = pair_log_probs(compiled, val_dataset, args.batch_size, ranks, autocast, stop)
        val_lengths = val_dataset.answer_lengths.to(device)
        _, values = preference_loss(policy, val_reference, val_lengths, args)
        values = {f"val_{k}": v for k, v in zip(METRICS, values.mean(0).tolist())}
        if questions and (ranks.is_main or args.fsdp):
            answers = ask(model, tokenizer, questions, stop=None if args.fsdp else stop)
            values["exact_match"] = exact_match(questions, answers)
        if stop.agree():
            return
        log.held_out(state, values.pop("val_loss"), **values)

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
        update_metrics = torch.zeros(len(METRICS), device=device)
        for micro_step, batch in enumerate(log.waiting(loader), start=1):
            if step >= total_steps:
                break
            X, Y, loss_mask, document_ids, pairs = (t.to(device, non_blocking=True) for t in batch)
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
                # (12) forward, (13) the loss of every pair, (14) the experts' auxiliary loss
                with autocast:
                    logits, aux_loss = wrapped(X, document_ids)
                policy = log_probs_of(logits, Y, loss_mask, document_ids, 2 * pairs.shape[1])
                losses, values = preference_loss(
                    policy.view(*pairs.shape, 2), reference[pairs], lengths[pairs], args
                )
                is_pair = (pairs >= 0).float()  # rows with fewer pairs than the fullest
                num_pairs = is_pair.sum().clamp(min=1)
                loss = (losses * is_pair).sum() / num_pairs + aux_loss

                # (15) divide by the accumulation steps. `share` is this micro-batch's number of
                # pairs over the update's mean, so that every pair of the update weighs the same
                update_pairs = sampler.tokens_in_update(step % sampler.updates_per_epoch)
                mean_pairs = update_pairs / (args.accumulation_steps * ranks.world_size)
                share = is_pair.sum() / mean_pairs
                loss = loss * share / args.accumulation_steps

                # (16) scale, backward
                scaler.scale(loss).backward()
            mean_values = (values * is_pair[..., None]).sum((0, 1)) / num_pairs
            update_metrics += mean_values * share / args.accumulation_steps
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
            state["pairs"] += update_pairs
            log.step(update_pairs)

            # (18) print and log to wandb unless it was skipped, measure the held-out loss
            if (step % args.log_interval == 0 or step == total_steps) and watch.settle():
                values = dict(zip(METRICS, watch.means()))  # since the last line
                values |= {"lr": lr, "grad_norm": grad_norm.item()}
                if scaler.is_enabled():
                    values["loss_scale"] = scaler.get_scale()
                log.metrics(step, speed="pairs", epoch=epoch, pairs=state["pairs"], **values)
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
