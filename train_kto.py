"""Kahneman-Tversky optimisation: make good answers likelier and bad ones less likely, unpaired.

    python train_kto.py                                     # out/full_sft, the demo's answers
    python train_kto.py --init_from out/full_sft --data_path judged.jsonl --undesirable_weight 2
    torchrun --nproc_per_node 8 train_kto.py --init_from Qwen3-0.6B --data_path judged.jsonl

The same sequence of steps as train_dpo.py, with the loss of `kto_loss` below (Ethayarajh et al.
2024): every answer is desirable or not by its own label. How far the policy has moved from the
reference, the model this starts from, is estimated in every micro-batch, over all ranks, from the
same prompts with the answers of other records. They are those of earlier records of the file, not
as in the paper those of the same micro-batch: so the reference's log-probabilities of both are
computed once, before training, and kept in a file.
"""

from functools import partial

import torch

from dataset.tokenizer import load_tokenizer
from model.hf_format import inherited
from training import checkpoint, cli, data
from training.distributed import sum_over_ranks
from training.evaluation import ask, exact_match
from training.losses import document_log_probs
from training.lr_schedule import learning_rate
from training.optimizers import build_optimizer, clip_gradients
from training.policy import load_policy, write_policy
from training.reference import pair_log_probs, reference_log_probs
from training.run import Run

METRICS = ("loss", "accuracy", "margin", "kl")
SEQ_LEN = 4096  # tokens per row: nearly all real answers fit beside another one


def kl_estimate(log_ratios, is_record):
    """KL(policy ‖ reference), 0 or more, of the prompts of a micro-batch over all ranks: scalar.

    log_ratios  [...]: log π(y'|x) - log π_ref(y'|x) of answers y' to other prompts than x
    is_record   [...]: 1, or 0 where there is none
    """
    sums = torch.stack([(log_ratios * is_record).sum(), is_record.sum()]).detach()
    total, count = sum_over_ranks(sums)
    return (total / count.clamp(min=1)).clamp(min=0)


def kto_loss(log_ratios, kl, labels, args):
    """The loss of every record [...], and METRICS of every record [..., 4].

    log_ratios  [...]: log π(y|x) - log π_ref(y|x) of whole answers
    kl          scalar, a constant: no gradient goes through it
    labels      bool [...]: whether the answer is desirable
    """
    beta = args.beta
    desirable = args.desirable_weight * (1 - torch.sigmoid(beta * (log_ratios - kl)))
    undesirable = args.undesirable_weight * (1 - torch.sigmoid(beta * (kl - log_ratios)))
    loss = torch.where(labels, desirable, undesirable)
    margin = beta * torch.where(labels, log_ratios - kl, kl - log_ratios)
    accuracy = ((margin > 0).float() + (margin >= 0).float()) / 2  # a tie, as at step 0, is half
    values = (loss, accuracy, margin, kl.expand_as(loss))
    return loss, torch.stack([value.detach() for value in values], dim=-1)


def parse_args():
    parser = cli.new_parser(__doc__)
    cli.add_model_flags(parser, of_a_loaded_model=True)
    cli.add_lora_flags(parser, rank=0)

    add = cli.flags(parser, "preferences")
    add("--beta", cli.in_range(1e-6, 1e3), 0.1, "strength of the reference")
    text = "weight of desirable answers' loss; best where weight × their number is 1 to 4/3 times"
    add("--desirable_weight", cli.in_range(0, 1e3), 1.0, f"{text} that of undesirable ones")
    add("--undesirable_weight", cli.in_range(0, 1e3), 1.0, "weight of undesirable answers' loss")

    what = "judged answers"
    cli.add_tuning_flags(parser, what, "out/full_sft", SEQ_LEN, val_fraction=0.1)
    cli.add_training_flags(parser, epochs=1, batch_size=2, learning_rate=5e-5, weight_decay=0.0)
    cli.add_run_flags(parser, out_dir="out/kto")
    return parser.parse_args()  # (1) parse the command line


def main():
    args = parse_args()
    args.init_from = checkpoint.model_folder(args.init_from, "--init_from")
    tokenizer = load_tokenizer(args.init_from)

    # (2) the architecture
    config = cli.build_config(args, tokenizer.vocab_size, SEQ_LEN)
    adapter = cli.build_lora(args, config) if args.lora_rank else None

    # (3) under torchrun: join the process group, take this rank's device
    run = Run(args, config, adapter, beta=args.beta)

    # (4) the model, which is still the reference
    base = inherited(args.init_from)
    model = run.place(load_policy(run), packed=True)

    # (5) the dataset: every prompt with its own answer and another's, what the reference says of
    # them, and the labels
    dataset, val_dataset = data.judged(args, tokenizer, run)
    questions = data.questions(args, tokenizer)
    reference, val_reference = (
        reference_log_probs(run, model, part) for part in (dataset, val_dataset or dataset)
    )
    labels = dataset.labels.to(run.device)
    if run.resumed_from:  # from here on the model is the policy
        model = run.place(load_policy(run, run.resumed_from))

    # (6) the loader: an order that depends on seed and epoch alone, shared out among the ranks
    loader = run.loader(dataset, val_dataset, dataset.num_records, "examples")

    # (7) the optimizer, (8) the scaler, which does something for float16 alone
    optimizer = build_optimizer(
        args.optimizer, model, args.learning_rate, args.weight_decay, run.dtype
    )
    scaler = torch.amp.GradScaler(run.device.type, enabled=run.dtype == torch.float16)

    # (9) compile; several processes: DistributedDataParallel averages the gradients
    parallel, log_probs_of = run.parallel(model), run.compile(document_log_probs)

    def measure():
        """The loss and what it is made of on held-out records, and exact answers to questions."""
        policy = pair_log_probs(
            run.compiled, val_dataset, args.batch_size, run.ranks, run.autocast, run.stop
        )
        own, others = (policy - val_reference).unbind(-1)
        val_labels = val_dataset.labels.to(run.device)
        _, values = kto_loss(own, kl_estimate(others, torch.ones_like(others)), val_labels, args)
        figures = {f"val_{name}": x for name, x in zip(METRICS, values.mean(0).tolist())}
        for name, chosen in (("desirable", val_labels), ("undesirable", ~val_labels)):
            if chosen.any():
                figures[f"val_{name}_reward"] = args.beta * own[chosen].mean().item()
                figures[f"val_{name}_log_prob"] = policy[chosen, 0].mean().item()
        if questions and run.generates:
            answers = ask(model, tokenizer, questions, stop=run.asked_to_stop)
            figures["exact_match"] = exact_match(questions, answers)
        return figures, []

    write_model = partial(write_policy, run, tokenizer, base)
    run.begin(optimizer, scaler, measure, write_model)

    # (10) for every epoch, for every batch
    for epoch in run.epochs():
        for X, Y, loss_mask, document_ids, records in run.batches(loader, epoch):
            # (11) set the learning rate
            lr = learning_rate(run.step, run.total_steps, args)  # --lr_schedule
            for group in optimizer.param_groups:
                group["lr"] = lr

            with run.gradient_sync():
                # (12) forward, (13) the loss of every record, (14) the experts' auxiliary loss
                with run.autocast:
                    logits, aux_loss = parallel(X, document_ids)
                policy = log_probs_of(logits, Y, loss_mask, document_ids, 2 * records.shape[1])
                own, others = (policy.view(*records.shape, 2) - reference[records]).unbind(-1)
                is_record = (records >= 0).float()  # rows with fewer records than the fullest
                losses, values = kto_loss(
                    own, kl_estimate(others, is_record), labels[records], args
                )
                num_records = is_record.sum().clamp(min=1)
                loss = (losses * is_record).sum() / num_records + aux_loss

                # (15) divide by the accumulation steps; `share` turns this micro-batch's mean into
                # its part of the mean over all records of the update
                loss = loss * run.share(is_record) / args.accumulation_steps

                # (16) scale, backward
                scaler.scale(loss).backward()
            means = (values * is_record[..., None]).sum((0, 1)) / num_records
            run.count(**dict(zip(METRICS, means)))
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
