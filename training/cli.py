"""The flags that the scripts share, and how a script ends on a user's mistake."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from dataclasses import fields
from functools import cache, partial
from pathlib import Path

import torch

from model.config import PRESETS, LMConfig
from model.hf_format import load_config
from model.json_file import read_json
from model.lora import LoRAConfig, default_targets
from training import run_lock
from training.distributed import Ranks, shutdown
from training.lr_schedule import SCHEDULES
from training.terminal import forgive_encodings

REPOSITORY = Path(__file__).resolve().parent.parent
TOKENIZER = REPOSITORY / "model" / "tokenizer"
LONG_RUN = 1000  # optimizer steps from which compiling pays on a CPU
LARGEST_SEED = 2**63 - 1  # that torch's generators take
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


def add_model_flags(parser: argparse.ArgumentParser, of_a_loaded_model: bool = False):
    """--preset and a flag for every field of LMConfig; one left out keeps the preset's value.

    of_a_loaded_model: only the flags of what the weights of --init_from do not decide.
    """
    group = parser.add_argument_group("model")
    if not of_a_loaded_model:
        text = "named size to start from"
        group.add_argument("--preset", choices=PRESETS, default="demo", help=text)
    for f in fields(LMConfig):
        if of_a_loaded_model and f.name not in CHANGEABLE:
            continue
        kind = {"bool": BOOL, "int": {"type": at_least(0)}, "float": {"type": in_range(0, 1e12)}}
        base = "--init_from's" if of_a_loaded_model else f"the preset's, else {f.default}"
        text = f"{f.metadata['help']} (default: {base})"
        # argparse.SUPPRESS: the attribute exists only if the flag was given
        group.add_argument(f"--{f.name}", default=argparse.SUPPRESS, help=text, **kind[f.type])


def add_lora_flags(parser: argparse.ArgumentParser, rank: int):
    """The numbers of an adapter. `rank` is the default; where it is 0, an adapter is optional."""
    add = parser.add_argument_group("adapter").add_argument
    text = "rank of every adapter" + ("" if rank else "; 0: none, all weights are trained")
    add("--lora_rank", type=at_least(min(rank, 1)), default=rank, help=text)
    text = "the adapter counts alpha / rank times"
    add("--lora_alpha", type=in_range(1e-6, 1e6), default=16.0, help=text)
    text = "probability of zeroing an adapter's input"
    add("--lora_dropout", type=in_range(0, 0.99), default=0.0, help=text)
    text = "names of the linear layers that get one; None: all of attention and feed-forward"
    add("--lora_targets", nargs="+", default=None, help=text)
    add("--use_rslora", action="store_true", help="alpha / sqrt(rank) in place of alpha / rank")
    add("--use_dora", action="store_true", help="train the length of every weight row too")


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


def add_seq_len_flag(add: Callable, seq_len: int):
    """--max_seq_len of a script whose default is `seq_len` (the same goes to `build_config`)."""
    text = f"tokens per row; None: as the run in --out_dir had, else {seq_len} or the context"
    add("--max_seq_len", type=at_least(1), default=None, help=text)


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
    parser: argparse.ArgumentParser,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
):
    """Steps, batch and optimizer, with a script's own defaults."""
    add = parser.add_argument_group("optimisation").add_argument
    add("--epochs", type=at_least(1), default=epochs, help="passes over the data")
    text = "optimizer steps in all, whatever the epochs; 0: as --epochs says"
    add("--max_steps", type=at_least(0), default=0, help=text)
    text = "rows per micro-batch and process"
    add("--batch_size", type=at_least(1, 2**20), default=batch_size, help=text)
    text = "micro-batches per step"
    add("--accumulation_steps", type=at_least(1, 2**20), default=1, help=text)
    text = "peak, after the warmup"
    add("--learning_rate", type=in_range(0, 10), default=learning_rate, help=text)
    text = "last learning rate as a share of the peak"
    add("--min_lr_ratio", type=in_range(0, 1), default=0.1, help=text)
    add("--warmup_steps", type=at_least(0), default=20, help="optimizer steps of linear rise")
    add("--lr_schedule", choices=SCHEDULES, default="cosine", help="wsd: warmup, stable, decay")
    add("--decay_fraction", type=in_range(0, 1), default=0.2, help="wsd: share of steps that decay")
    text = "muon: Muon for the hidden matrices, AdamW for the rest"
    add("--optimizer", choices=["adamw", "muon"], default="adamw", help=text)
    text = "on matrices, per unit of lr"
    add("--weight_decay", type=in_range(0, 10), default=weight_decay, help=text)
    text = "largest norm of the whole gradient; 0: no clipping"
    add("--grad_clip", type=in_range(0, 1e9), default=1.0, help=text)


def add_run_flags(parser: argparse.ArgumentParser, out_dir: str):
    """Where it runs, what it leaves behind, what it prints."""
    group = parser.add_argument_group("run")
    add = group.add_argument
    add("--out_dir", type=Path, default=Path(out_dir), help="folder of checkpoints and metrics")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    add("--dtype", default="auto", choices=["auto", *_DTYPES], help="precision of the products")
    text = (
        "compile model and loss, which takes a minute or two; None: on CUDA, and on CPUs in runs "
    )
    add("--compile", **BOOL, default=None, help=text + f"of {LONG_RUN:,} or more steps")
    text = "replay the compiled step as CUDA graphs: for small models on one GPU, not accumulating"
    add("--cuda_graphs", action="store_true", help=text)
    text = "keep only each block's input for the backward pass: less memory, a third more work"
    add("--activation_checkpointing", action="store_true", help=text)
    text = "on a GPU, kernels that give the same bits every time (slower; a CPU's do anyway)"
    add("--deterministic", action="store_true", help=text)
    text = "raise --batch_size to the largest that fits, lower --accumulation_steps by as much"
    add("--auto_batch", action="store_true", help=text)
    text = "share out parameters, gradients and optimizer state among the ranks (FSDP2)"
    add("--fsdp", action="store_true", help=text)
    add("--num_workers", type=at_least(0, 1024), default=0, help="loader processes per rank")
    add("--log_interval", type=at_least(1), default=10, help="optimizer steps between log lines")
    add("--eval_interval", type=at_least(1), default=200, help="optimizer steps between held-out")
    add(
        "--save_interval", type=at_least(1), default=200, help="optimizer steps between checkpoints"
    )
    add(
        "--keep_checkpoints",
        type=at_least(2),
        default=2,
        help="newest checkpoints kept, + the best",
    )
    add("--resume", default="auto", help="auto: go on from out_dir's newest step; never; or a path")
    text = "go on from a checkpoint of another run (data, seed, batch, base): name what differs"
    add("--allow_changes", action="store_true", help=text)
    text = "the same where nothing but the data differs"
    add("--resume_on_changed_data", action="store_true", help=text)
    add("--overwrite", action="store_true", help="with --resume never: delete what out_dir holds")
    text = "updates in a row that may be skipped because loss or gradient is not finite"
    add("--max_bad_steps", type=at_least(0), default=5, help=text)
    add("--cache_dir", type=Path, default=Path("out/cache"), help="folder of tokenised data")
    text = "a broken record: stop before training, or skip and count it"
    add("--on_bad_record", choices=["stop", "skip"], default="stop", help=text)
    add(
        "--seed",
        type=at_least(0, LARGEST_SEED),
        default=42,
        help="of the weights, the data order and dropout",
    )
    add(
        "--use_wandb",
        action="store_true",
        help="log to Weights & Biases (WANDB_MODE=offline works)",
    )
    add("--wandb_project", default="minimind", help="W&B project")
    add("--wandb_run_name", default=None, help="W&B run name; None: one is made up")


BOOL = {"action": argparse.BooleanOptionalAction}
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


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


def paired(paths: list, weights: list[float]) -> dict[str, float]:
    """--data_weights by file; ValueError unless there is one for each, and each file once."""
    if len(paths) != len(weights):
        raise ValueError(f"--data_weights: {len(weights)} weights for {len(paths)} --data_path")
    resolved = [Path(path).resolve() for path in paths]
    for path, place in zip(paths, resolved):
        if (times := resolved.count(place)) > 1:
            total = sum(weight for other, weight in zip(resolved, weights) if other == place)
            raise ValueError(
                f"--data_path {path}: given {times} times; give it once, with the weight {total:g} "
                "in --data_weights"
            )
    return {str(Path(path)): weight for path, weight in zip(paths, weights)}  # as records name it


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of autocast for --dtype; "auto" is the fastest one that needs no loss scaling.

    bfloat16 on GPUs that have it and on CPUs with instructions for it (AMX, AVX512-BF16: several
    times float32), else float32: without them a CPU emulates bfloat16 at a fraction of the speed.
    """
    if name != "auto":
        return _DTYPES[name]
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    if device.type == "cpu" and torch.backends.mkldnn.is_available() and _cpu_has_bf16():
        return torch.bfloat16
    return torch.float32


@cache
def _cpu_has_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


def compiler(
    flag: bool | None, device: torch.device, total_steps: int, cuda_graphs: bool = False
) -> Callable:
    """torch.compile for --compile, or a function that gives back what it gets.

    None compiles on CUDA, and on a CPU where the run is long enough to win back the time that
    compiling takes and there is a C++ compiler. dynamic=False: batches have one shape, and graphs
    made for it are faster than graphs for any. cuda_graphs: kernels are launched together, as
    recorded; worth it where launching them one by one takes longer than they do.
    """
    if flag is None:
        found = any(shutil.which(name) for name in ("g++", "c++", "clang++", "cl"))
        long_on_cpu = device.type == "cpu" and total_steps >= LONG_RUN and found
        flag = device.type == "cuda" or long_on_cpu
    mode = "reduce-overhead" if cuda_graphs else None
    return partial(torch.compile, dynamic=False, mode=mode) if flag else lambda function: function


def check_cuda_graphs(args: argparse.Namespace, ranks: Ranks, config: LMConfig):
    """ValueError if --cuda_graphs contradicts another flag.

    Gradients of one micro-batch would lie where the next one's graph writes its own, collectives
    are not part of a graph, and some kernels for grouped products read the groups' sizes first.
    """
    if not args.cuda_graphs:
        return
    if ranks.device.type != "cuda":
        raise ValueError(f"--cuda_graphs: the device is {ranks.device}")
    if args.compile is False:
        raise ValueError("--cuda_graphs: not with --no-compile, the compiler makes them")
    if args.accumulation_steps > 1 or args.auto_batch:
        raise ValueError("--cuda_graphs: not with --accumulation_steps above 1 or --auto_batch")
    if config.use_moe:
        raise ValueError("--cuda_graphs: not with experts")
    if ranks.is_distributed:
        raise ValueError("--cuda_graphs: for one process")


def write_args(out_dir: Path, args: argparse.Namespace, **more):
    """args.json: every resolved flag and what else is needed to repeat the run."""
    content = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    content |= more | {"torch": torch.__version__, "command": sys.argv}
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / "args.json").write_text(json.dumps(content, indent=2, default=str) + "\n")


def run(main: Callable[[], None]):
    """Call a script's main(); a user's mistake ends with one clear line and exit status 2.

    A mistake is a ValueError raised by this repository's own code; a ValueError from inside a
    library is a bug and keeps its traceback, as every other exception does. What the terminal
    cannot show is written as escapes.
    """
    forgive_encodings()
    try:
        main()
        shutdown()  # of a run that had nothing to do
    except ValueError as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        ours = Path(last.filename).resolve()
        if not ours.is_relative_to(REPOSITORY) or "site-packages" in ours.parts:
            raise
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:  # torch.OutOfMemoryError of a GPU, or that of a CPU's allocator
        what = str(error).split("DefaultCPUAllocator: ")[-1].split(".")[0]
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in what:
            raise
        print(
            f"error: out of memory ({what}): halve --batch_size and double "
            "--accumulation_steps (the same update, but not with --cuda_graphs), or lower "
            "--max_seq_len, or take a smaller model",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever read the output (less, head) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    finally:
        run_lock.release()
