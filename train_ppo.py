"""PPO: a critic says what is still to come, and answers better than that become likelier.

    python train_ppo.py --reward model=out/reward --data_path questions.jsonl
    python train_ppo.py --critic_from out/reward --reward model=out/reward --kl_coef 0.1
    torchrun --nproc_per_node 8 train_ppo.py --init_from Qwen3-0.6B --data_path questions.jsonl

The same sequence of steps as train_grpo.py. The critic, a RewardModel beside the policy, is trained
with it. Every update samples completions with the weights as they are, judges them by --reward, and
learns from them for --ppo_epochs passes in --minibatches optimizer steps each, by the equations of
training/ppo_losses.py (Schulman et al. 2017; Ziegler et al. 2019). docs/reward_and_ppo.md says how
this departs from the papers.
"""

from functools import partial

import torch

from dataset.chat import chat_tokenizer
from model.hf_format import inherited, weights_sha256
from training import checkpoint, cli
from training.actor_critic import load_actor_critic, look_back, minibatches, write_actor_critic
from training.completions import tools_of
from training.distributed import sum_over_ranks
from training.lr_schedule import learning_rate
from training.optimizers import build_optimizer, clip_gradients
from training.policy import load_reference
from training.ppo_losses import policy_loss, value_loss
from training.prompts import prompt_datasets
from training.rollouts import Rollouts, token_log_probs
from training.run import Run
from training.scoring import judged_by, rewards_of

SEQ_LEN = 1024  # tokens of the longest prompt with its completion, and of a packed row
IDENTITY = ("reward", "kl_coef", "gamma", "lam", "epsilon", "value_epsilon", "value_coef",
            "target_kl", "ppo_epochs", "minibatches", "num_generations", "temperature",
            "max_new_tokens", "mask_truncated", "tools", "max_turns")  # fmt: skip


def ppo_loss(log_probs, values, rows, old_values, returns, args):
    """The loss of every token [n], and what is to be logged of each, by name.

    log_probs, values    of the tokens under the policy; of the states before them
    rows.old, old_values  the same when they were sampled; constants, as .advantages and returns
    """
    of_policy, clipped = policy_loss(log_probs, rows.old, rows.advantages, args.epsilon)
    of_values, values_clipped = value_loss(values, old_values, returns, args.value_epsilon)
    log_ratio = log_probs - rows.old
    logged = {"policy_loss": of_policy, "value_loss": of_values, "clipped": clipped,
              "values_clipped": values_clipped, "return": returns,
              "drift": log_ratio.exp() - 1 - log_ratio}  # KL from the sampler, k3  # fmt: skip
    if rows.reference is not None:
        logged["kl"] = rows.old - rows.reference
    return of_policy + args.value_coef * of_values, logged


def token_weights(lengths, completions, tokens, args):
    """What each token counts of completions with these lengths: all of a minibatch's the same."""
    return 1 / (tokens + 0 * lengths)


def parse_args():
    parser = cli.new_parser(__doc__)
    cli.add_model_flags(parser, of_a_loaded_model=True)

    add = cli.flags(parser, "rewards")
    text = "NAME=WEIGHT, model=FOLDER: what completions are judged by, added up (tasks/rewards.py)"
    add("--reward", cli.SEVERAL, ["number=1"], text)
    add("--kl_coef", cli.in_range(0, 1e3), 0.05, "each token's reward: minus this times its KL")
    add("--gamma", cli.in_range(0, 1), 1.0, "discount of a reward, per token")
    add("--lam", cli.in_range(0, 1), 0.95, "λ of advantages: 1 trusts returns, 0 the critic")
    add("--epsilon", cli.in_range(0, 1), 0.2, "how far ratios may move from 1")
    add("--value_epsilon", cli.in_range(0, 1e6), 0.2, "how far values may move in an update")
    add("--value_coef", cli.in_range(0, 1e3), 0.1, "weight of the critic's loss")
    text = "end an update after the step whose KL from the sampler, in nats a token, is above this"
    add("--target_kl", cli.in_range(0, 1e3), 0.0, f"{text}; 0: never")
    add("--ppo_epochs", cli.at_least(1), 2, "passes over an update's completions")
    add("--minibatches", cli.at_least(1), 1, "optimizer steps of a pass")
    text = "reward or language model of the same size to begin the critic with; None: --init_from"
    add("--critic_from", str, None, text)
    cli.add_sampling_flags(parser)

    cli.add_tuning_flags(parser, "prompts", "out/full_sft", SEQ_LEN, val_fraction=0.1)
    cli.add_training_flags(parser, epochs=1, batch_size=16, learning_rate=1e-5, weight_decay=0.0)
    cli.add_run_flags(parser, out_dir="out/ppo")
    return parser.parse_args()  # (1) parse the command line


def main():
    args = parse_args()
    args.init_from = checkpoint.model_folder(args.init_from, "--init_from")
    args.critic_from = checkpoint.model_folder(args.critic_from or args.init_from, "--critic_from")
    tokenizer = chat_tokenizer(args.init_from)
    cli.check_sampling(args)

    # (2) the architecture, of policy and critic
    config = cli.build_config(args, tokenizer.vocab_size, SEQ_LEN)

    numbers = {name: getattr(args, name) for name in IDENTITY} | {"judged_by": judged_by(args)}
    critic_from = f"the critic with the SHA-256 {weights_sha256(args.critic_from)[:12]}…"

    # (3) under torchrun: join the process group, take this rank's device
    run = Run(args, config, critic_from=critic_from, **numbers)

    # (4) the model with its critic, and what it began as
    base = inherited(args.init_from)
    model = run.place(load_actor_critic(run, run.resumed_from), packed=True)
    reference = load_reference(run) if args.kl_coef else None

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
    run.begin(optimizer, scaler, measure, partial(write_actor_critic, run, tokenizer, base))

    def learned_from(epoch):
        """Micro-batches of every update's optimizer steps: sampled, judged, packed, looked back."""
        for prompts in rollouts.prompts(dataset, loader, epoch):
            groups = rollouts.sample(prompts)  # with the weights as they are now
            scores = rollouts.judge(groups)  # [prompts, generations]
            figures, steps = rollouts.figures(groups, scores), []
            for part in minibatches(run, [number for number, _ in prompts], args.minibatches):
                chosen = [groups[i] for i in part], scores[part]
                steps.append(rollouts.rows(*chosen, scores[part], token_weights, figures=figures))
            batches = [rows for step in steps for rows in step]
            rollouts.ask_reference(reference, batches)
            looked_back = iter(look_back(run, batches, args))
            steps = [[next(looked_back) for _ in step] for step in steps]
            yield from run.inner_updates(steps * args.ppo_epochs)

    # (10) for every epoch, for every batch
    for epoch in run.epochs():
        drift = 0.0
        for rows, old_values, returns in learned_from(epoch):
            # (11) set the learning rate
            lr = learning_rate(run.step, run.total_steps, args)  # --lr_schedule
            for group in optimizer.param_groups:
                group["lr"] = lr

            with run.gradient_sync():
                # (12) forward, (13) the loss of every token, (14) the experts' auxiliary loss
                with run.autocast:
                    logits, values, aux_loss = parallel(**rows.inputs)
                log_probs, entropy = log_probs_of(logits, rows.Y, args.temperature)
                losses, logged = ppo_loss(log_probs, values, rows, old_values, returns, args)
                loss = (losses * rows.weights).sum() + aux_loss * rows.share

                # (15) the weights make it a part of the mean over the minibatch on all ranks; so
                # these are to be added up, and DistributedDataParallel takes their mean
                loss = loss * run.ranks.world_size

                # (16) scale, backward
                scaler.scale(loss).backward()
            parts = rows.means(logged | {"entropy": entropy}) | rows.figures
            run.count(loss=loss / run.ranks.world_size, **parts, aux_loss=aux_loss * rows.share)
            drift = drift + parts["drift"]
            if not run.at_boundary:
                continue
            if args.target_kl and sum_over_ranks(drift) > args.target_kl:
                run.inner_left = 0  # this optimizer step is the update's last
            drift = 0.0

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
