"""Distillation: a student learns what a teacher thinks of every next token, not the token alone.

    python train_distillation.py --hidden_size 160 --num_hidden_layers 3 --intermediate_size 520
    python train_distillation.py --teacher Qwen3-4B --init_from Qwen3-0.6B --data_path chats.jsonl
    python train_distillation.py --teacher out/pretrain --data text --data_path my.jsonl

The first command makes a new student of 2M and lets out/full_sft teach it, on the demo's
conversations. The same sequence of steps as train_full_sft.py (--data text: train_pretrain.py),
with the teacher's part of the loss in `divergence` below (Hinton et al. 2015; Agarwal et al. 2024).
"""

from pathlib import Path

import torch

from dataset.chat import stop_ids
from model.hf_format import inherited, load_model, save_model, weights_sha256
from model.model import MiniMindLM
from training import checkpoint, cli, data
from training.evaluation import continue_text, loss_and_answers
from training.losses import masked_cross_entropy, masked_mean
from training.lr_schedule import learning_rate
from training.optimizers import build_optimizer, clip_gradients
from training.own_samples import OwnSamples
from training.run import Run
from training.teacher import Teacher, teachers_tokenizer

SEQ_LEN = 1024  # tokens per row: all but a few conversations of real data fit (docs/decisions.md)
DIVERGENCES = ["forward_kl", "reverse_kl", "jsd"]
JSD_BETA = 0.5


def divergence(q, p, args):
    """How far apart two distributions over the next token are, in nats: float32 [N].

    q, p  log-probabilities [N, V] of the student's and of the teacher's, softened by --temperature
    """
    if args.divergence == "forward_kl":  # KL(p ‖ q): be likely wherever the teacher is
        return (p.exp() * (p - q)).sum(-1)
    if args.divergence == "reverse_kl":  # KL(q ‖ p): be unlikely wherever the teacher is
        return (q.exp() * (q - p)).sum(-1)
    # generalised Jensen-Shannon (Agarwal et al. 2024): β KL(p ‖ m) + (1-β) KL(q ‖ m), where
    # m = β p + (1-β) q
    beta = torch.tensor(args.jsd_beta, device=q.device)
    m = torch.logaddexp(p + beta.log(), q + (-beta).log1p())
    return (beta * p.exp() * (p - m) + (1 - beta) * q.exp() * (q - m)).sum(-1)


def parse_args():
    parser = cli.new_parser(__doc__)
    cli.add_model_flags(parser)  # of a new student: --preset and one flag for every field

    add = cli.flags(parser, "distillation")
    add("--teacher", Path, Path("out/full_sft"), "model folder or run with the same vocabulary")
    text = "weight α of the data's own next tokens; the teacher's opinion has 1 - α"
    add("--alpha", cli.in_range(0, 1), 0.5, text)
    add("--divergence", DIVERGENCES, DIVERGENCES[0], "KL, the other way round, or between both")
    text = "jsd: share of the teacher in the mixture; near 0 a small forward KL, near 1 a reverse"
    add("--jsd_beta", cli.in_range(0.01, 0.99), JSD_BETA, text)
    text = "T that softens both distributions; the divergence counts T² times"
    add("--temperature", cli.in_range(0.01, 100), 1.0, text)
    text = "keep so many of the teacher's likeliest tokens in --cache_dir; a run that finds them "
    add("--teacher_top_k", cli.at_least(0), 0, f"{text}there loads no teacher; 0: none, all count")
    text = "what --data_path holds: conversations, of which the assistant's words count, or texts"
    add("--data", ["conversations", "text"], "conversations", text)
    add("--text_field", str, "text", "--data text: field of the records that holds the text")

    text = "share of the updates that the student learns from in its own words, by divergence alone"
    add("--on_policy", cli.in_range(0, 1), 0.0, text)
    add("--max_new_tokens", cli.at_least(1), 128, "--on_policy: tokens of an answer at most")

    cli.add_tuning_flags(parser, "conversations", None, SEQ_LEN, val_fraction=0.02)
    cli.add_training_flags(parser, epochs=2, batch_size=4, learning_rate=1e-3, weight_decay=0.01)
    cli.add_run_flags(parser, out_dir="out/distillation")
    return parser.parse_args()  # (1) parse the command line


def parts_of_the_loss(args) -> dict:
    """What the loss of a run is made of; ValueError for a flag that would mean nothing."""
    if args.divergence != "jsd" and args.jsd_beta != JSD_BETA:
        raise ValueError(f"--jsd_beta: belongs to --divergence jsd, not {args.divergence}")
    for name in ("questions", "data_weights") if args.data == "text" else ():
        if getattr(args, name) is not None:
            raise ValueError(f"--{name}: belongs to --data conversations, not text")
    if args.on_policy and args.data == "text":
        raise ValueError("--on_policy: not with --data text")
    if args.on_policy and args.teacher_top_k:
        raise ValueError("--teacher_top_k: not with --on_policy, whose texts are new ones")
    names = ["divergence", "temperature", "on_policy", "teacher_top_k"]
    names += ["jsd_beta"] * (args.divergence == "jsd")
    teacher = {"teacher_sha256": weights_sha256(args.teacher)}
    return teacher | {name: getattr(args, name) for name in names}


def new_or_loaded(run, config):
    """The student as the run begins or goes on with it."""
    if start := run.resumed_from or run.args.init_from:
        return load_model(start, run.home, config=config, weights_file=run.exact_weights)
    torch.manual_seed(run.args.seed)  # the same first weights on every rank
    with run.home:
        return MiniMindLM(config)


def main():
    args = parse_args()
    args.teacher = checkpoint.model_folder(args.teacher, "--teacher")
    if args.init_from is not None:
        args.init_from = checkpoint.model_folder(args.init_from, "--init_from")
    tokenizer = teachers_tokenizer(args)

    # (2) the architecture
    config = cli.build_config(args, tokenizer.vocab_size, SEQ_LEN)

    # (3) under torchrun: join the process group, take this rank's device
    run = Run(args, config, **parts_of_the_loss(args))

    # (4) the teacher, then the student: resumed, loaded, or new
    teacher = Teacher(run, tokenizer, divergence)
    base, is_chat = args.init_from and inherited(args.init_from), args.data == "conversations"
    model = run.place(new_or_loaded(run, config), packed=is_chat)

    # (5) the dataset: rows of conversations or of texts
    make_rows = data.conversations if is_chat else data.text_rows
    dataset, val_dataset = make_rows(args, tokenizer, run)
    questions = data.questions(args, tokenizer, val_dataset) if is_chat else []

    # (6) the loader: an order that depends on seed and epoch alone, shared out among the ranks
    loader = run.loader(dataset, val_dataset)

    # (7) the optimizer, (8) the scaler, which does something for float16 alone
    optimizer = build_optimizer(
        args.optimizer, model, args.learning_rate, args.weight_decay, run.dtype
    )
    scaler = torch.amp.GradScaler(run.device.type, enabled=run.dtype == torch.float16)

    # (9) compile; several processes: DistributedDataParallel averages the gradients
    parallel, masked_loss = run.parallel(model), run.compile(masked_cross_entropy)
    teacher.get_ready(dataset, val_dataset)
    own = OwnSamples(run, tokenizer, args.on_policy, args.max_new_tokens)  # where that is due

    def measure():
        """Held-out cross-entropy and divergence, and what the student says."""
        figures, lines = loss_and_answers(run, val_dataset, tokenizer, questions, teacher.gaps)
        if not is_chat and run.generates:
            opening = val_dataset[0][0][:16].tolist()
            lines = [continue_text(model, tokenizer, opening, 60, args.seed)]
        return figures, lines

    def write_model(folder: Path, weights: dict):
        ends = stop_ids(tokenizer) if is_chat else tokenizer.eos_id
        save_model(model, folder, ends, weights, base)
        tokenizer.save(folder, chat_template=is_chat)

    run.begin(optimizer, scaler, measure, write_model)

    # (10) for every epoch, for every batch
    for epoch in run.epochs():
        for X, Y, loss_mask, *document_ids in own.batches(loader, epoch):
            # (11) set the learning rate
            lr = learning_rate(run.step, run.total_steps, args)  # --lr_schedule
            for group in optimizer.param_groups:
                group["lr"] = lr

            with run.gradient_sync():
                # (12) forward, (13) α · cross-entropy + (1 - α) · T² · divergence, (14) the
                # experts' auxiliary loss
                with run.autocast:
                    logits, aux_loss = parallel(X, *document_ids)
                    cross_entropy = masked_loss(logits, Y, loss_mask)
                gap = masked_mean(teacher.gaps(logits, X, *document_ids), loss_mask)
                soft = args.temperature**2 * gap  # T² makes up for the 1 / T² in its gradient
                alpha = 0 if own.is_due else args.alpha  # its own words are no truth
                objective = alpha * cross_entropy + (1 - alpha) * soft
                loss = objective + aux_loss

                # (15) divide by the accumulation steps; `share` turns this micro-batch's mean into
                # its part of the mean over all tokens of the update: 1 where all rows are full
                loss = loss * run.share(loss_mask) / args.accumulation_steps

                # (16) scale, backward
                scaler.scale(loss).backward()
            run.count(
                loss=objective, cross_entropy=cross_entropy, divergence=gap, aux_loss=aux_loss
            )
            if not run.at_boundary:
                continue

            # (17) unscale, clip, step, update the scaler, zero the gradients
            scaler.unscale_(optimizer)
            grad_norm = clip_gradients(model, args.grad_clip)
            run.skip_unless_finite(grad_norm)  # if it is not, the next line changes nothing
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)

            # (18) print, log to wandb, measure the held-out loss
            run.update_done(lr, grad_norm)

            # (19) save
            run.save_if_due()

    return run.close()


if __name__ == "__main__":
    cli.run(main)
