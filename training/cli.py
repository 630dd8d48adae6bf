"""The flags that the scripts share, and how a script ends on a user's mistake."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import torch

from model.config import PRESETS, LMConfig
from model.hf_format import load_config
from model.json_file import read_json
from model.lora import LoRAConfig, default_targets
from training import run_lock, run_log
from training.compute import DTYPES, LONG_RUN
from training.distributed import shutdown
from training.faults import fault_in_words
from training.lr_schedule import SCHEDULES
from training.terminal import forgive_encodings

REPOSITORY = Path(__file__).resolve().parent.parent
TOKENIZER = REPOSITORY / "model" / "tokenizer"
LARGEST_SEED = 2**63 - 1  # that torch's generators take
DECAY_FRACTION = 0.2
MAX_TURNS = 4
SMALLEST_FLOAT = torch.finfo(torch.float32).tiny  # smaller ones are denormal, or 0 on a GPU


# LMConfig fields that weights loaded from a folder do not decide
CHANGEABLE = (
    "max_position_embeddings", "yarn_factor", "yarn_original_length", "yarn_beta_fast",
    "yarn_beta_slow", "yarn_attention_factor", "dropout", "router_aux_loss_coef",
    "initializer_range",
)  # fmt: skip


_NO_GRADIENT = (
    "one expert per token with norm_topk_prob: the renormalised weight is always 1, so the router "
    "gets no gradient from the language-model loss"
)


def new_parser(doc: str) -> argparse.ArgumentParser:
    """A parser whose --help opens with the script's docstring and shows every default."""

    class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
        pass

    return argparse.ArgumentParser(description=doc, formatter_class=Formatter, allow_abbrev=False)


def flags(parser: argparse.ArgumentParser, group: str) -> Callable:
    """A function that declares a flag of a group: add("--name", kind, default, "help").

    kind: what makes the value of the word, the choices as a list, or argparse's own words as a dict
    (BOOL, SWITCH, SEVERAL).
    """
    add_argument = parser.add_argument_group(group).add_argument

    def add(name: str, kind, default, help: str):
        words = {"choices": kind} if isinstance(kind, list) else {"type": kind}
        add_argument(
            name, default=default, help=help, **(kind if isinstance(kind, dict) else words)
        )

    return add


def add_model_flags(parser: argparse.ArgumentParser, of_a_loaded_model: bool = False):
    """--preset and a flag for every field of LMConfig; one left out keeps the preset's value.

    of_a_loaded_model: only the flags of what the weights of --init_from do not decide.
    """
    add = flags(parser, "model")
    if not of_a_loaded_model:
        add("--preset", list(PRESETS), "demo", "named size to start from")
    kinds = {"bool": BOOL, "int": at_least(0), "float": in_range(0, 1e12)}
    for f in fields(LMConfig):
        if of_a_loaded_model and f.name not in CHANGEABLE:
            continue
        base = "--init_from's" if of_a_loaded_model else f"the preset's, else {f.default}"
        # argparse.SUPPRESS: the attribute exists only if the flag was given
        text = f"{f.metadata['help']} (default: {base})"
        add(f"--{f.name}", kinds[f.type], argparse.SUPPRESS, text)


def add_lora_flags(parser: argparse.ArgumentParser, rank: int):
    """The numbers of an adapter. `rank` is the default; where it is 0, an adapter is optional."""
    add = flags(parser, "adapter")
    none = "" if rank else "; 0: none, all weights are trained"
    add("--lora_rank", at_least(min(rank, 1)), rank, f"rank of every adapter{none}")
    add("--lora_alpha", in_range(1e-6, 1e6), 16.0, "the adapter counts alpha / rank times")
    add("--lora_dropout", in_range(0, 0.99), 0.0, "probability of zeroing an adapter's input")
    text = "names of the linear layers that get one; None: all of attention and feed-forward"
    add("--lora_targets", SEVERAL, None, text)
    add("--use_rslora", SWITCH, False, "alpha / sqrt(rank) in place of alpha / rank")
    add("--use_dora", SWITCH, False, "train the length of every weight row too")


def add_text_flags(parser: argparse.ArgumentParser, max_seq_len: int, val_fraction: float):
    """The data of pretraining: raw text."""
    add = flags(parser, "data")
    text = "jsonl, json, txt, csv, parquet, arrow files, also .gz, .zst; None: the demo corpus"
    add("--data_path", SEVERAL, None, text)
    add("--text_field", str, "text", "field of the records that holds the text")
    _add_held_out_flags(add, "documents", val_fraction)
    add("--init_from", Path, None, "model folder or run to start from; None: random weights")
    text = "tokenizer folder; None: --init_from's, else this repository's model/tokenizer"
    add("--tokenizer", Path, None, text)
    add("--max_seq_len", at_least(1), max_seq_len, "tokens per row")


def add_tuning_flags(
    parser: argparse.ArgumentParser,
    what: str,
    init_from: str | None,
    max_seq_len: int,
    val_fraction: float,
    questions: bool = True,
):
    """The data of fine-tuning, and the model it begins with. what: "conversations", "pairs".

    init_from: the default; None where a new model is made without it.
    questions: whether the model answers any.
    """
    add = flags(parser, "data")
    add("--data_path", SEVERAL, None, f"one or several files of {what}; None: the demo corpus")
    _add_held_out_flags(add, what, val_fraction)
    if what == "prompts":
        text = "let a model that was taught to think do so before it answers"
        add("--enable_thinking", SWITCH, False, text)
    elif questions:
        text = 'file of {"question", "answer"} whose greedy answers must be exact; None: the'
        add("--questions", Path, None, f"{text} demo's if --data_path is")
    text = "model folder or run to start from: ours or any dense Qwen3"
    if init_from is None:
        text += "; None: random weights"
    add("--init_from", Path, init_from and Path(init_from), text)
    text = f"tokens per row; None: as the run in --out_dir had, else {max_seq_len} or the context"
    add("--max_seq_len", at_least(1), None, text)
    if what == "conversations":
        text = "per file, how often its conversations are taken in an epoch; None: once"
        add("--data_weights", {"type": in_range(0, 1e3), **SEVERAL}, None, text)
        add("--packing", BOOL, True, "several conversations in a row; without: one, to compare")


def add_sampling_flags(parser: argparse.ArgumentParser):
    """How completions are sampled, of which a model learns."""
    add = flags(parser, "sampling")
    add("--num_generations", at_least(2, 2**16), 8, "completions of every prompt")
    add("--max_new_tokens", at_least(1), 64, "longest completion, tools' answers included")
    add("--temperature", in_range(0.01, 100), 1.0, "of sampling; the policy is what is sampled")
    text = "refused below 1: the policy that is trained would not be the one that is sampled"
    add("--top_p", in_range(0, 1), 1.0, text)
    add("--top_k", at_least(0), 0, "refused above 0, for the same reason")
    add("--mask_truncated", SWITCH, False, "learn nothing from completions cut at the limit")
    add("--max_running", at_least(1, 2**16), 256, "completions sampled at a time, per process")
    text = "what completions may call: all, calculator, get_time, convert_units; .py, .json, .csv"
    add("--tools", SEVERAL, None, text)
    text = "turns of the model in a completion, tools answering between them"
    add("--max_turns", at_least(1, 2**16), MAX_TURNS, text)
    text = "completions of every held-out prompt for pass@1 and pass@k; 0: greedy ones alone"
    add("--eval_generations", at_least(0, 2**16), 4, text)


def check_sampling(args: argparse.Namespace):
    """ValueError for a distribution to sample from that is not the policy's own."""
    if args.top_p < 1 or args.top_k > 0:
        flag = f"--top_p {args.top_p:g}" if args.top_p < 1 else f"--top_k {args.top_k}"
        raise ValueError(
            f"{flag}: completions to learn from are drawn from the whole distribution (--top_p 1 "
            "--top_k 0), else their probabilities under the policy are not those they were drawn "
            "with"
        )


def _add_held_out_flags(add: Callable, what: str, val_fraction: float):
    add("--val_data_path", SEVERAL, None, "held-out files, in place of a fraction")
    text = f"share of the {what} held out for evaluation"
    add("--val_fraction", in_range(0, 0.5), val_fraction, text)


def build_lora(args: argparse.Namespace, config: LMConfig) -> LoRAConfig:
    """The LoRAConfig that the flags ask for. Raises ValueError naming the flag."""
    targets = tuple(args.lora_targets or default_targets(config.use_moe))
    if "gate" in targets and not config.router_learns:
        raise ValueError(f"--lora_targets gate: {_NO_GRADIENT}")
    return LoRAConfig(
        args.lora_rank, args.lora_alpha, args.lora_dropout, targets, args.use_rslora, args.use_dora
    )


def given_model_fields(args: argparse.Namespace) -> dict:
    """The LMConfig fields that were given on the command line."""
    return {f.name: getattr(args, f.name) for f in fields(LMConfig) if hasattr(args, f.name)}


def build_config(args: argparse.Namespace, tokenizer_size: int, seq_len: int = 0) -> LMConfig:
    """The LMConfig of a new run: --init_from's or --preset's, with the given flags on top.

    The vocabulary defaults to the tokenizer's size; --max_seq_len, where it is not given, becomes
    that of the run in --out_dir, else seq_len or the context if that is shorter. Raises ValueError
    for a vocabulary smaller than the tokenizer, a row longer than the context, or a flag that the
    loaded weights contradict.
    """
    given = given_model_fields(args)
    if args.init_from is None:
        config = LMConfig.preset(args.preset, **{"vocab_size": tokenizer_size} | given)
    else:
        loaded = load_config(args.init_from)
        for name, value in given.items():
            if name not in CHANGEABLE and value != getattr(loaded, name):
                have = getattr(loaded, name)
                raise ValueError(f"--{name} {value}: the model in --init_from has {have}")
        config = loaded.with_changes(**given)
    if not config.router_learns and not getattr(args, "lora_rank", 0):
        where = f"--init_from {args.init_from}" if args.init_from else "--num_experts_per_tok 1"
        raise ValueError(
            f"{where}: {_NO_GRADIENT}; train adapters in place of all weights, or a model with "
            "2 experts per token or --no-norm_topk_prob"
        )
    if config.vocab_size < tokenizer_size:
        raise ValueError(
            f"--vocab_size {config.vocab_size}: the tokenizer has {tokenizer_size} entries; "
            "a model needs at least as many"
        )
    if args.max_seq_len is None:
        args.max_seq_len = _seq_len_of_run(args) or min(seq_len, config.max_position_embeddings)
    if args.max_seq_len > config.max_position_embeddings:
        raise ValueError(
            f"--max_seq_len {args.max_seq_len}: the model's context is "
            f"{config.max_position_embeddings} tokens (--max_position_embeddings)"
        )
    return config


def _seq_len_of_run(args: argparse.Namespace) -> int | None:
    """--max_seq_len of the run that this one goes on with, if there is one."""
    if args.resume == "never":
        return None
    folder = args.out_dir if args.resume == "auto" else Path(args.resume)
    if args.resume != "auto" and not (folder / "args.json").is_file():
        folder = folder.parent  # a single checkpoint was named
    if not any(folder.glob("step-*")):  # it has not come so far that it could go on
        return None
    seq_len = None
    with contextlib.suppress(ValueError):
        seq_len = read_json(folder / "args.json").get("max_seq_len")
    return seq_len if type(seq_len) is int and seq_len > 0 else None


def add_training_flags(
    parser: argparse.ArgumentParser, epochs: int, batch_size: int, learning_rate: float,
    weight_decay: float,
):  # fmt: skip
    """Steps, batch and optimizer, with a script's own defaults."""
    add = flags(parser, "optimisation")
    add("--epochs", at_least(1), epochs, "passes over the data")
    add("--max_steps", at_least(0), 0, "optimizer steps in all, whatever the epochs; 0: --epochs")
    add("--batch_size", at_least(1, 2**20), batch_size, "rows per micro-batch and process")
    add("--accumulation_steps", at_least(1, 2**20), 1, "micro-batches per step")
    add("--learning_rate", in_range(0, 10), learning_rate, "peak, after the warmup")
    add("--min_lr_ratio", in_range(0, 1), 0.1, "last learning rate as a share of the peak")
    add("--warmup_steps", at_least(0), 20, "optimizer steps of linear rise")
    add("--lr_schedule", SCHEDULES, SCHEDULES[0], "wsd: warmup, stable, decay")
    add("--decay_fraction", in_range(0, 1), DECAY_FRACTION, "wsd: share of the steps that decay")
    text = "muon: Muon for the hidden matrices, AdamW for the rest"
    add("--optimizer", ["adamw", "muon"], "adamw", text)
    add("--weight_decay", in_range(0, 10), weight_decay, "on matrices, per unit of lr")
    text = "largest norm of the whole gradient; 0: no clipping"
    add("--grad_clip", in_range(0, 1e9), 1.0, text)


def add_run_flags(parser: argparse.ArgumentParser, out_dir: str):
    """Where it runs, what it leaves behind, what it prints."""
    add = flags(parser, "run")
    add("--out_dir", Path, Path(out_dir), "folder of checkpoints and metrics")
    add("--device", str, "auto", "auto, cpu, cuda, cuda:N or mps")
    add("--dtype", ["auto", *DTYPES], "auto", "precision of the products")
    text = "compile model and loss, a minute or two; None: on CUDA with Triton, and on CPUs in runs"
    add("--compile", BOOL, None, f"{text} of {LONG_RUN:,} or more steps")
    text = "replay the compiled step as CUDA graphs: for small models on one GPU, not accumulating"
    add("--cuda_graphs", SWITCH, False, text)
    text = "keep only each block's input for the backward pass: less memory, a third more work"
    add("--activation_checkpointing", SWITCH, False, text)
    text = "on a GPU, kernels that give the same bits every time (slower; a CPU's do anyway)"
    add("--deterministic", SWITCH, False, text)
    text = "raise --batch_size to the largest that fits, lower --accumulation_steps by as much"
    add("--auto_batch", SWITCH, False, text)
    text = "share out parameters, gradients and optimizer state among the ranks (FSDP2)"
    add("--fsdp", SWITCH, False, text)
    add("--num_workers", at_least(0, 1024), 0, "loader processes per rank")
    add("--log_interval", at_least(1), 10, "optimizer steps between log lines")
    add("--eval_interval", at_least(1), 200, "optimizer steps between held-out figures")
    add("--save_interval", at_least(1), 200, "optimizer steps between checkpoints")
    add("--keep_checkpoints", at_least(2), 2, "newest checkpoints kept, + the best")
    add("--resume", str, "auto", "auto: go on from out_dir's newest step; never; or a path")
    text = "go on from a checkpoint of another run (data, seed, batch, base): name what differs"
    add("--allow_changes", SWITCH, False, text)
    add("--resume_on_changed_data", SWITCH, False, "the same where nothing but the data differs")
    add("--overwrite", SWITCH, False, "with --resume never: delete what out_dir holds")
    text = "updates in a row that may be skipped because loss or gradient is not finite"
    add("--max_bad_steps", at_least(0), 5, text)
    add("--cache_dir", Path, Path("out/cache"), "folder of tokenised data")
    text = "a broken record: stop before training, or skip and count it"
    add("--on_bad_record", ["stop", "skip"], "stop", text)
    add("--seed", at_least(0, LARGEST_SEED), 42, "of the weights, the data order and dropout")
    text = "event files for TensorBoard, in out_dir/tensorboard: no account, no network"
    add("--use_tensorboard", SWITCH, False, text)
    add("--use_wandb", SWITCH, False, "log to Weights & Biases (WANDB_MODE=offline works)")
    add("--wandb_project", str, "minimind", "W&B project")
    add("--wandb_run_name", str, None, "W&B run name; None: one is made up")


BOOL = {"action": argparse.BooleanOptionalAction}  # --name and --no-name
SWITCH = {"action": "store_true"}
SEVERAL = {"nargs": "+"}


def at_least(low: int, high: int = 2**31 - 1) -> Callable[[str], int]:
    """An argparse type: a whole number in [low, high]."""

    def whole_number(text: str) -> int:
        if int(text) < low:
            raise argparse.ArgumentTypeError(f"expected at least {low}, got {text}")
        if int(text) > high:
            raise argparse.ArgumentTypeError(f"expected at most {high}, got {text}")
        return int(text)

    return whole_number


def in_range(low: float, high: float, or_zero: bool = False) -> Callable[[str], float]:
    """An argparse type: a number in [low, high] that float32 can hold; or_zero: or 0."""
    expected = ("0 or " if or_zero else "") + f"{low:g} to {high:g}"

    def number(text: str) -> float:
        value = float(text) + 0.0  # no -0.0
        if not low <= value <= high and not (or_zero and value == 0):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text}")
        if 0 < abs(value) < SMALLEST_FLOAT:
            raise argparse.ArgumentTypeError(f"nearer to 0 than float32 can tell: {text}")
        return value

    return number


def run(main: Callable[[], int | None]):
    """Call a script's main() and exit with the status that it returns, if that is not 0 or None.

    A user's mistake ends with one clear line and exit status 2.
    A mistake is a ValueError raised by this repository's own code; a ValueError from inside a
    library is a bug and keeps its traceback, as every other exception does. What the terminal
    cannot show is written as escapes.
    """
    forgive_encodings()
    try:
        try:
            status = main()
        except SystemExit as left:  # a run that had nothing to do, on all ranks, or --help
            if left.code:
                raise
            status = 0
        except Exception as error:
            run_log.failed(error)
            raise
        shutdown()  # now that nothing of main is alive that uses the process group
        if status:
            sys.exit(status)
    except ValueError as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        ours = Path(last.filename).resolve()
        if not ours.is_relative_to(REPOSITORY) or "site-packages" in ours.parts:
            raise
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        text = fault_in_words(error)
        if text is None:
            raise
        print(f"error: {text}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever read the output (less, head) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    finally:
        run_lock.release()
