"""Group-relative policy optimisation: completions better than their group become likelier.

    python train_grpo.py                                      # out/full_sft, the demo's sums
    python train_grpo.py --init_from out/full_sft --data_path questions.jsonl --loss dapo
    torchrun --nproc_per_node 8 train_grpo.py --init_from Qwen3-0.6B --data_path gsm8k.jsonl

The same sequence of steps as train_dpo.py, but nobody has written the answers: every update samples
--num_generations completions of each prompt with the weights as they are, judges them by --reward
and learns from them with `policy_loss` below, --inner_updates times. docs/grpo.md says how this
departs from the papers.
"""

from functools import partial

import torch

from dataset.chat import chat_tokenizer
from model.hf_format import inherited
from training import checkpoint, cli
from training.completions import tools_of
from training.lr_schedule import learning_rate
from training.optimizers import build_optimizer, clip_gradients
from training.policy import load_policy, load_reference, write_policy
from training.prompts import prompt_datasets
from training.rollouts import Rollouts, sequence_means, token_log_probs
from training.run import Run
from training.scoring import judged_by, rewards_of

SEQ_LEN = 1024  # tokens of the longest prompt with its completion, and of a packed row
LOSSES = ["grpo", "dr_grpo", "dapo", "cispo", "gspo"]
EPSILONS = {"cispo": (0.0, 5.0), "gspo": (3e-4, 4e-4), "dapo": (0.2, 0.28)}  # else 0.2, 0.2


def group_advantages(rewards, args):
    """How much better a completion is than its group, [prompts, generations] as the rewards."""
    rewards = rewards - rewards[:, :1]  # of equal ones, a mean may be rounded to another number
    advantages = rewards - rewards.mean(-1, keepdim=True)
    if args.scale_rewards == "group":  # Dr. GRPO leaves it out: --scale_rewards none
        advantages = advantages / (rewards.std(-1, keepdim=True) + 1e-4)  # unbiased: n - 1
    return advantages


def token_weights(lengths, completions, tokens, args):
    """What each token counts of completions with these lengths; the update has so many of both."""
    if args.loss in ("grpo", "gspo"):  # the mean over completions of the means over their tokens
        return 1 / (completions * lengths)
    if args.loss == "dr_grpo":  # Liu et al. 2025: a constant, so that length earns nothing
        return 1 / (completions * args.max_new_tokens + 0 * lengths)
    return 1 / (tokens + 0 * lengths)  # DAPO (Yu et al. 2025), CISPO: every token counts the same


def policy_loss(log_probs, rows, args):
    """The loss of every token [n], and what is to be logged of each, by name.

    log_probs  [n], of the tokens under the policy
    rows       their old and their reference's log_probs, advantages and completions (`Rows`)
    """
    log_ratio = log_probs - rows.old
    if args.loss == "gspo":  # Zheng et al. 2025: one ratio for all tokens of a completion
        log_ratio = sequence_means(log_ratio, rows)
    ratio, advantages = log_ratio.exp(), rows.advantages
    low, high = args.epsilon, args.epsilon_high
    if args.loss == "cispo":  # MiniMax-M1 2025: the ratio is a weight, all tokens have a gradient
        clipped = ratio > high
        loss = -ratio.clamp(max=high).detach() * advantages * log_probs
    else:  # Shao et al. 2024, after PPO: -min(ρ A, clip(ρ, 1 - ε_low, 1 + ε_high) A)
        clipped = (advantages > 0) & (ratio > 1 + high) | (advantages < 0) & (ratio < 1 - low)
        loss = -torch.min(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)
    values = {"clipped": clipped}
    if args.beta:  # Schulman's k3, of one sample and never below 0: e^d - d - 1
        d = rows.reference - log_probs
        values["kl"] = d.exp() - d - 1
        loss = loss + args.beta * values["kl"]
    return loss, values


def parse_args():
    parser = cli.new_parser(__doc__)
    cli.add_model_flags(parser, of_a_loaded_model=True)
    cli.add_lora_flags(parser, rank=0)

    add = cli.flags(parser, "rewards")
    text = "NAME=WEIGHT: what completions are judged by, added up; the first says which are right"
    add("--reward", cli.SEVERAL, ["number=1"], text)
    text = "group: advantages are divided by the standard deviation of their group's rewards"
    add("--scale_rewards", ["group", "none"], "group", text)
    add("--loss", LOSSES, LOSSES[0], "how a token's ratio is clipped, and what the mean is over")
    add("--beta", cli.in_range(0, 1e3), 0.0, "weight of the KL to the starting model; 0: without")
    text = "how far ratios may fall below 1; None: 0.2, gspo 3e-4"
    add("--epsilon", cli.in_range(0, 1), None, text)
    text = "how far they may rise above 1 (cispo: the largest); None: 0.2, dapo 0.28, cispo 5"
    add("--epsilon_high", cli.in_range(0, 1e3), None, text)
    add("--inner_updates", cli.at_least(1), 1, "optimizer steps with each update's completions")
    cli.add_sampling_flags(parser)

    cli.add_tuning_flags(parser, "prompts", "out/full_sft", SEQ_LEN, val_fraction=0.1)
    cli.add_training_flags(parser, epochs=1, batch_size=16, learning_rate=1e-5, weight_decay=0.0)
    cli.add_run_flags(parser, out_dir="out/grpo")
    return parser.parse_args()  # (1) parse the command line


def parts_of_the_loss(args) -> dict:
    """What the loss of a run is made of, by flag; fills in what depends on --loss."""
    cli.check_sampling(args)
    low, high = EPSILONS.get(args.loss, (0.2, 0.2))
    args.epsilon = low if args.epsilon is None else args.epsilon
    args.epsilon_high = high if args.epsilon_high is None else args.epsilon_high
    names = (
        "loss", "beta", "epsilon", "epsilon_high", "inner_updates", "num_generations", "reward",
        "scale_rewards", "temperature", "max_new_tokens", "mask_truncated", "tools", "max_turns",
    )  # fmt: skip
    return {name: getattr(args, name) for name in names} | {"judged_by": judged_by(args)}


def main():
    args = parse_args()
    args.init_from = checkpoint.model_folder(args.init_from, "--init_from")
    tokenizer = chat_tokenizer(args.init_from)

    # (2) the architecture
    config = cli.build_config(args, tokenizer.vocab_size, SEQ_LEN)
    adapter = cli.build_lora(args, config) if args.lora_rank else None

    # (3) under torchrun: join the process group, take this rank's device
    run = Run(args, config, adapter, **parts_of_the_loss(args))

    # (4) the model, and what it began as
    base = inherited(args.init_from)
    model = run.place(load_policy(run, run.resumed_from), packed=True)
    reference = load_reference(run) if args.beta else None

    # (5) the dataset: prompts; and how their completions are sampled and judged
    tools = tools_of(args, tokenizer)
    dataset, val_dataset = prompt_datasets(args, tokenizer, run, tools)
    rollouts = Rollouts(run, tokenizer, rewards_of(run), tools)

    # (6) the loader: an order that depends on seed and epoch alone, shared out among the ranks
    loader = run.loader(dataset, val_dataset, dataset.num_prompts, "prompts")

    # (7) the optimizer, (8) the scaler, which does something for float16 alone
    optimizer = build_optimizer(
        args.optimizer, model, args.learning_rate, args.weight_decay, run.dtype
    )
    scaler = torch.amp.GradScaler(run.device.type, enabled=run.dtype == torch.float16)

    # (9) compile; several processes: DistributedDataParallel averages the gradients
    parallel, log_probs_of = run.parallel(model), run.compile(token_log_probs)

    measure = partial(rollouts.measure, val_dataset)
    run.begin(optimizer, scaler, measure, partial(write_policy, run, tokenizer, base))

    def learned_from(epoch):
        """Micro-batches of every update: sampled, judged, packed; --inner_updates times each."""
        for prompts in rollouts.prompts(dataset, loader, epoch):
            groups = rollouts.sample(prompts)  # with the weights as they are now
            rewards = rollouts.judge(groups)  # [prompts, generations]
            advantages = group_advantages(rewards, args)
            batches = rollouts.rows(groups, rewards, advantages, token_weights, compact=True)
            rollouts.ask_reference(reference, batches)
            yield from run.inner_updates([batches] * args.inner_updates)

    # (10) for every epoch, for every batch
    for epoch in run.epochs():
        for rows in learned_from(epoch):
            # (11) set the learning rate
            lr = learning_rate(run.step, run.total_steps, args)  # --lr_schedule
            for group in optimizer.param_groups:
                group["lr"] = lr

            with run.gradient_sync():
                # (12) forward, (13) the loss of every token, (14) the experts' auxiliary loss
                with run.autocast:
                    logits, aux_loss = parallel(**rows.inputs)
                log_probs, entropy = log_probs_of(logits, rows.Y, args.temperature)
                if rows.old is None:  # the first of the inner updates
                    rows.old = log_probs.detach()
                losses, values = policy_loss(log_probs, rows, args)
                loss = (losses * rows.weights).sum() + aux_loss * rows.share

                # (15) the weights make it a part of the mean over the whole update on all ranks; so
                # these are to be added up, and DistributedDataParallel takes their mean
                loss = loss * run.ranks.world_size

                # (16) scale, backward
                scaler.scale(loss).backward()
            values |= {"entropy": entropy, "gap": (rows.old - rows.sampled).abs()}
            parts = rows.means(values) | rows.figures | {"aux_loss": aux_loss * rows.share}
            run.count(loss=loss / run.ranks.world_size, **parts)
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
