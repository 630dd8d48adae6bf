"""A reward model: a score for every answer, higher for the better one of two.

    python train_reward.py                                       # out/full_sft, the demo's pairs
    python train_reward.py --init_from out/full_sft --data_path pairs.jsonl
    torchrun --nproc_per_node 8 train_reward.py --init_from Qwen3-0.6B --data_path pairs.jsonl

The same sequence of steps and the same pairs as train_dpo.py, with the loss of `reward_loss` below
(Bradley & Terry 1952, as in Ouyang et al. 2022). The model's head of words gives way to one number,
read at a conversation's last token. The folder is a Qwen3ForSequenceClassification with one label.
"""

from functools import partial

import torch
import torch.nn.functional as F

from dataset.tokenizer import load_tokenizer
from model.hf_format import inherited
from model.reward_model import untied
from training import checkpoint, cli, data
from training.losses import document_scores
from training.lr_schedule import learning_rate
from training.optimizers import build_optimizer, clip_gradients
from training.reference import pair_log_probs
from training.run import Run
from training.scoring import load_scorer, write_scorer

METRICS = ("loss", "accuracy", "margin", "chosen_score", "rejected_score")
SEQ_LEN = 4096  # tokens per row: both answers of nearly all real pairs fit (docs/decisions.md)


def reward_loss(scores, args):
    """The loss of every pair [...], and METRICS of every pair [..., 5].

    scores  [..., 2]: r of the prompt with the chosen, with the rejected answer
    """
    chosen, rejected = scores.unbind(-1)
    margin = chosen - rejected
    loss = -F.logsigmoid(margin)  # Bradley-Terry: p(chosen is better) = σ(r_chosen - r_rejected)
    if args.center_rewards_coefficient:  # scores around 0 (Eisenstein et al. 2023): c (r + r')²
        loss = loss + args.center_rewards_coefficient * (chosen + rejected) ** 2
    accuracy = ((margin > 0).float() + (margin >= 0).float()) / 2  # a tie is half
    values = (loss, accuracy, margin, chosen, rejected)
    return loss, torch.stack([value.detach() for value in values], dim=-1)


def parse_args():
    parser = cli.new_parser(__doc__)
    cli.add_model_flags(parser, of_a_loaded_model=True)

    add = cli.flags(parser, "preferences")
    text = "c of c (r_chosen + r_rejected)²: keeps the scores around 0; 0.01 is usual, 0: none"
    add("--center_rewards_coefficient", cli.in_range(0, 1e3), 0.0, text)

    init_from = "out/full_sft"
    cli.add_tuning_flags(parser, "pairs", init_from, SEQ_LEN, val_fraction=0.1, questions=False)
    cli.add_training_flags(parser, epochs=1, batch_size=2, learning_rate=5e-5, weight_decay=0.0)
    cli.add_run_flags(parser, out_dir="out/reward")
    return parser.parse_args()  # (1) parse the command line


def main():
    args = parse_args()
    args.init_from = checkpoint.model_folder(args.init_from, "--init_from")
    tokenizer = load_tokenizer(args.init_from)

    # (2) the architecture: its head shares nothing with the embedding
    config = untied(cli.build_config(args, tokenizer.vocab_size, SEQ_LEN))

    # (3) under torchrun: join the process group, take this rank's device
    run = Run(args, config, center_rewards_coefficient=args.center_rewards_coefficient)

    # (4) the model: a language model's blocks with a fresh head, or a reward model
    base = inherited(args.init_from)
    model = run.place(load_scorer(run, run.resumed_from), packed=True)

    # (5) the dataset: both answers of a pair in one row
    dataset, val_dataset = data.pairs(args, tokenizer, run, scored=True)

    # (6) the loader: an order that depends on seed and epoch alone, shared out among the ranks
    loader = run.loader(dataset, val_dataset, dataset.num_pairs, "pairs")

    # (7) the optimizer, (8) the scaler, which does something for float16 alone
    optimizer = build_optimizer(
        args.optimizer, model, args.learning_rate, args.weight_decay, run.dtype
    )
    scaler = torch.amp.GradScaler(run.device.type, enabled=run.dtype == torch.float16)

    # (9) compile; several processes: DistributedDataParallel averages the gradients
    parallel = run.parallel(model)

    def measure():
        """The loss and what it is made of on held-out pairs."""
        scores = pair_log_probs(
            run.compiled, val_dataset, args.batch_size, run.ranks, run.autocast, run.stop,
            of=document_scores,
        )  # fmt: skip
        _, values = reward_loss(scores, args)
        figures = {f"val_{name}": x for name, x in zip(METRICS, values.mean(0).tolist())}
        return figures | {"val_score_std": scores.std().item()}, []

    write_model = partial(write_scorer, run, tokenizer, base)
    run.begin(optimizer, scaler, measure, write_model)

    # (10) for every epoch, for every batch
    for epoch in run.epochs():
        for X, Y, loss_mask, document_ids, pairs in run.batches(loader, epoch):
            # (11) set the learning rate
            lr = learning_rate(run.step, run.total_steps, args)  # --lr_schedule
            for group in optimizer.param_groups:
                group["lr"] = lr

            with run.gradient_sync():
                # (12) forward, (13) the loss of every pair, (14) the experts' auxiliary loss
                with run.autocast:
                    scores, aux_loss = parallel(X, document_ids)
                scores = document_scores(scores, Y, loss_mask, document_ids, 2 * pairs.shape[1])
                losses, values = reward_loss(scores.view(*pairs.shape, 2), args)
                is_pair = (pairs >= 0).float()  # rows with fewer pairs than the fullest
                num_pairs = is_pair.sum().clamp(min=1)
                loss = (losses * is_pair).sum() / num_pairs + aux_loss

                # (15) divide by the accumulation steps; `share` turns this micro-batch's mean into
                # its part of the mean over all pairs of the update
                loss = loss * run.share(is_pair) / args.accumulation_steps

                # (16) scale, backward
                scaler.scale(loss).backward()
            means = (values * is_pair[..., None]).sum((0, 1)) / num_pairs
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
