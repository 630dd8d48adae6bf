"""Direct preference optimisation: of two answers to a prompt, make the chosen one likelier.

    python train_dpo.py                                       # out/full_sft, the demo's pairs
    python train_dpo.py --init_from out/full_sft --data_path pairs.jsonl --loss simpo
    torchrun --nproc_per_node 8 train_dpo.py --init_from Qwen3-0.6B --data_path pairs.jsonl

The same sequence of steps as train_pretrain.py, with the loss of `preference_loss` below. The
reference is the model this starts from: its log-probabilities are computed once, before training,
and kept in a file, so that training holds one model. With --lora_rank only adapters are trained.
"""

from functools import partial

import torch
import torch.nn.functional as F

from dataset.tokenizer import load_tokenizer
from model.hf_format import inherited
from training import checkpoint, cli, data
from training.evaluation import ask, exact_match
from training.losses import document_log_probs
from training.lr_schedule import learning_rate
from training.optimizers import build_optimizer, clip_gradients
from training.policy import load_policy, write_policy
from training.reference import pair_log_probs, reference_log_probs
from training.run import Run

METRICS = (
    "loss", "accuracy", "margin", "chosen_reward", "rejected_reward", "chosen_log_prob",
    "rejected_log_prob",
)  # fmt: skip
SEQ_LEN = 4096  # tokens per row: both answers of nearly all real pairs fit (docs/decisions.md)
LOSSES = ["sigmoid", "ipo", "robust", "simpo", "orpo"]
OF_A_LOSS = {"robust": {"label_smoothing": 0.1}, "simpo": {"simpo_gamma": 0.5}}  # and defaults
WITHOUT_REFERENCE = ("simpo", "orpo")  # they take the mean log-probabilities of tokens


def preference_loss(policy, reference, lengths, args):
    """The loss of every pair [...], and METRICS of every pair [..., 7].

    policy, reference  [..., 2]: log-probability of the whole chosen, of the whole rejected answer;
                       some losses have no reference
    lengths            [..., 2]: their tokens
    """
    beta, is_alone = args.beta, args.loss in WITHOUT_REFERENCE
    log_ratios = policy / lengths if is_alone else policy - reference
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

    add = cli.flags(parser, "preferences")
    text = "of a pair: sigmoid is DPO, ipo, robust (wrong labels), simpo and orpo (no reference)"
    add("--loss", LOSSES, LOSSES[0], text)
    add("--beta", cli.in_range(1e-6, 1e3), 0.1, "strength of the reference")
    text = "robust: share of pairs whose labels are taken to be wrong"
    default = OF_A_LOSS["robust"]["label_smoothing"]
    add("--label_smoothing", cli.in_range(0, 0.49), default, text)
    default = OF_A_LOSS["simpo"]["simpo_gamma"]
    add("--simpo_gamma", cli.in_range(0, 100), default, "simpo: target margin")
    text = "weight of the chosen answers' own loss (nats per token); 0: none"
    add("--sft_weight", cli.in_range(0, 1e3), 0.0, text)

    cli.add_tuning_flags(parser, "pairs", "out/full_sft", SEQ_LEN, val_fraction=0.1)
    cli.add_training_flags(parser, epochs=1, batch_size=2, learning_rate=5e-5, weight_decay=0.0)
    cli.add_run_flags(parser, out_dir="out/dpo")
    return parser.parse_args()  # (1) parse the command line


def parts_of_the_loss(args) -> dict:
    """What the loss of a run is made of; ValueError for a number of another loss."""
    for loss, numbers in OF_A_LOSS.items():
        for name, default in numbers.items() if loss != args.loss else ():
            if getattr(args, name) != default:
                raise ValueError(f"--{name}: belongs to --loss {loss}, not {args.loss}")
    return {name: getattr(args, name) for name in ("loss", "beta", *OF_A_LOSS.get(args.loss, ()))}


def main():
    args = parse_args()
    args.init_from = checkpoint.model_folder(args.init_from, "--init_from")
    tokenizer = load_tokenizer(args.init_from)

    # (2) the architecture
    config = cli.build_config(args, tokenizer.vocab_size, SEQ_LEN)
    adapter = cli.build_lora(args, config) if args.lora_rank else None

    # (3) under torchrun: join the process group, take this rank's device
    run = Run(args, config, adapter, **parts_of_the_loss(args))

    # (4) the model, which is still the reference
    base = inherited(args.init_from)
    model = run.place(load_policy(run), packed=True)

    # (5) the dataset: both answers of a pair in one row, and what the reference says of them
    dataset, val_dataset = data.pairs(args, tokenizer, run)
    questions = data.questions(args, tokenizer)
    reference_model = None if args.loss in WITHOUT_REFERENCE else model
    reference, val_reference = (
        reference_log_probs(run, reference_model, part)
        for part in (dataset, val_dataset or dataset)
    )
    lengths = dataset.answer_lengths.to(run.device)
    if run.resumed_from:  # from here on the model is the policy
        model = run.place(load_policy(run, run.resumed_from))

    # (6) the loader: an order that depends on seed and epoch alone, shared out among the ranks
    loader = run.loader(dataset, val_dataset, dataset.num_pairs, "pairs")

    # (7) the optimizer, (8) the scaler, which does something for float16 alone
    optimizer = build_optimizer(
        args.optimizer, model, args.learning_rate, args.weight_decay, run.dtype
    )
    scaler = torch.amp.GradScaler(run.device.type, enabled=run.dtype == torch.float16)

    # (9) compile; several processes: DistributedDataParallel averages the gradients
    parallel, log_probs_of = run.parallel(model), run.compile(document_log_probs)

    def measure():
        """The loss and what it is made of on held-out pairs, and exact answers to questions."""
        policy = pair_log_probs(
            run.compiled, val_dataset, args.batch_size, run.ranks, run.autocast, run.stop
        )
        val_lengths = val_dataset.answer_lengths.to(run.device)
        _, values = preference_loss(policy, val_reference, val_lengths, args)
        figures = {f"val_{name}": x for name, x in zip(METRICS, values.mean(0).tolist())}
        if questions and run.generates:
            answers = ask(model, tokenizer, questions, stop=run.asked_to_stop)
            figures["exact_match"] = exact_match(questions, answers)
        return figures, []

    write_model = partial(write_policy, run, tokenizer, base)
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
                    logits, aux_loss = parallel(X, document_ids)
                policy = log_probs_of(logits, Y, loss_mask, document_ids, 2 * pairs.shape[1])
                losses, values = preference_loss(
                    policy.view(*pairs.shape, 2), reference[pairs], lengths[pairs], args
                )
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
