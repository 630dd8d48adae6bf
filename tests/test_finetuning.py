"""train_full_sft.py, train_lora.py and train_dpo.py from the outside."""

import json
import sys
from pathlib import Path

import pytest
import torch
import transformers
import trl
from safetensors.torch import load_file

import eval_model
import train_dpo
import train_full_sft
import train_lora
from dataset.chat import encode_conversation
from dataset.tokenizer import load_tokenizer
from model import lora
from model.config import LMConfig
from model.hf_format import load_model, save_model, weights_sha256
from model.model import MiniMindLM
from tests.oracle_models import open_there
from tests.processes import in_two_processes
from training import cli
from training.run_log import SPEEDS
from training.writer import CheckpointWriter

SCRIPTS = {"full_sft": train_full_sft, "lora": train_lora, "dpo": train_dpo}
COMMON = [
    "--max_seq_len", "160", "--device", "cpu", "--dtype", "float32", "--no-compile",
    "--log_interval", "1", "--eval_interval", "1000", "--save_interval", "1",
    "--keep_checkpoints", "9",
]  # fmt: skip


def say(role, content):
    return {"role": role, "content": content}


@pytest.fixture
def base(tmp_path, tiny_tokenizer_dir):
    """A folder with a tiny base model."""
    folder = tmp_path / "base"
    folder.mkdir()
    torch.manual_seed(0)
    config = LMConfig(
        vocab_size=512, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=64, initializer_range=0.1,
    )  # fmt: skip
    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    save_model(MiniMindLM(config), folder, tokenizer.eos_id)
    tokenizer.save(folder, chat_template=False)
    return folder


@pytest.fixture
def flags(tmp_path, base):
    """The flags of each script for a small file of uneven conversations, or of pairs."""
    chats, pairs = [], []
    for i in range(24):
        turns = [say("user", f"What is {i}?"), say("assistant", "The cat. " * (i % 5 + 1))]
        chats.append({"conversations": turns * (i % 3 + 1)})
        rejected = say("assistant", f"No, {i}.")
        pairs.append({"chosen": turns, "rejected": [turns[0], rejected]})
    for name, records in (("chats", chats), ("pairs", pairs)):
        text = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / f"{name}.jsonl").write_text(text)
    both = ["--init_from", str(base), "--cache_dir", str(tmp_path / "cache"), *COMMON]
    chats, pairs = (str(tmp_path / f"{name}.jsonl") for name in ("chats", "pairs"))
    sft = ["--data_path", chats, *both]
    return {"full_sft": sft, "lora": sft, "dpo": ["--data_path", pairs, *both]}


def train(monkeypatch, script, out_dir, *flags):
    argv = [f"train_{script}.py", "--out_dir", str(out_dir), *map(str, flags)]
    monkeypatch.setattr(sys, "argv", argv)
    try:
        SCRIPTS[script].main()
    except SystemExit as left:  # there was nothing to do
        assert left.code == 0


def metrics(out_dir):
    lines = (out_dir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in SPEEDS} for line in lines]


def gradients(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The gradient of a run's first update: AdamW's exp_avg after one step is 0.1 times it."""
    state = load_file(checkpoint / "resume/optimizer.tensors")
    return {k.removesuffix(".exp_avg"): v / 0.1 for k, v in state.items() if k.endswith(".exp_avg")}


def assert_same(a: dict, b: dict, rtol=1e-5):
    assert a.keys() == b.keys()
    for name, gradient in a.items():
        torch.testing.assert_close(gradient, b[name], rtol=rtol, atol=1e-7, msg=name)


ONE_UPDATE = ["--max_steps", "1", "--val_fraction", "0", "--grad_clip", "0", "--batch_size"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_update_is_a_mean_however_it_is_shared_out(monkeypatch, tmp_path, flags, script):
    """1 × 8, 8 × 1 and two processes × 4 micro-batches give one gradient, uneven masks included."""
    train(monkeypatch, script, tmp_path / "one", *flags[script], *ONE_UPDATE, 24)
    train(monkeypatch, script, tmp_path / "eight", *flags[script], *ONE_UPDATE, 3,
          "--accumulation_steps", 8)  # fmt: skip
    in_two_processes(f"train_{script}.py", tmp_path / "two", *flags[script], *ONE_UPDATE, 3,
                     "--accumulation_steps", 4)  # fmt: skip
    first = gradients(tmp_path / "one" / "step-00000001")
    for run in ("eight", "two"):
        assert_same(first, gradients(tmp_path / run / "step-00000001"), rtol=1e-4)
        assert metrics(tmp_path / run)[0]["loss"] == pytest.approx(
            metrics(tmp_path / "one")[0]["loss"], rel=1e-5
        )


def test_sft_gradient_equals_transformers(monkeypatch, tmp_path, flags, base):
    """The packed update's gradient is that of transformers' loss with num_items_in_batch.

    transformers sees every conversation alone, padded by nothing, labels -100 where the mask is 0.
    """
    train(monkeypatch, "full_sft", tmp_path / "run", *flags["full_sft"], *ONE_UPDATE, 24)
    model, tokenizer = open_there(base), load_tokenizer(base)
    encoded = [
        encode_conversation(tokenizer, json.loads(line)["conversations"])
        for line in (tmp_path / "chats.jsonl").read_text().splitlines()
    ]
    count = sum(sum(mask) for _, mask in encoded)
    total = 0.0
    for ids, mask in encoded:
        labels = [token if m else -100 for token, m in zip(ids, mask)]
        loss = model(
            torch.tensor([ids]), labels=torch.tensor([labels]), num_items_in_batch=count
        ).loss
        loss.backward()
        total += loss.item()
    theirs = {name: p.grad for name, p in model.named_parameters()}
    assert_same(gradients(tmp_path / "run" / "step-00000001"), theirs, rtol=1e-4)
    assert metrics(tmp_path / "run")[0]["loss"] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(
    ("script", "more"),
    [
        ("full_sft", ["--dropout", "0.1"]),
        ("lora", ["--lora_dropout", "0.2", "--use_dora"]),
        ("dpo", []),
        ("dpo", ["--lora_rank", "4"]),
        ("full_sft", ["--optimizer", "muon"]),
        ("lora", ["--optimizer", "muon", "--use_dora"]),
    ],
)
def test_resumed_run_equals_uninterrupted(monkeypatch, tmp_path, flags, script, more):
    """Stopped after step 3 and started again: the same bits and the same metrics."""
    argv = [*flags[script], *more, "--max_steps", 6, "--batch_size", 2, "--val_fraction", 0.1,
            "--accumulation_steps", 2, "--eval_interval", 2]  # fmt: skip
    train(monkeypatch, script, tmp_path / "whole", *argv)
    save = CheckpointWriter.save

    def save_and_stop(writer, *args):
        save(writer, *args)
        if args[2]["step"] == 3:
            writer.wait()
            raise KeyboardInterrupt

    monkeypatch.setattr(CheckpointWriter, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train(monkeypatch, script, tmp_path / "stopped", *argv)
    monkeypatch.setattr(CheckpointWriter, "save", save)
    train(monkeypatch, script, tmp_path / "stopped", *argv)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "stopped")
    whole, stopped = (tmp_path / run / "step-00000006" for run in ("whole", "stopped"))
    names = [*(p.name for p in whole.glob("*.safetensors")), "resume/optimizer.tensors"]
    assert len(names) == 2
    for name in names:
        assert (whole / name).read_bytes() == (stopped / name).read_bytes()


def test_sft_leaves_a_chat_model(monkeypatch, tmp_path, flags):
    """The checkpoint has a chat template, stops at <|im_end|>, and opens in transformers."""
    train(monkeypatch, "full_sft", tmp_path / "run", *flags["full_sft"], "--max_steps", 2)
    folder = tmp_path / "run" / "step-00000002"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    open_there(folder)
    messages = [say("user", "What is 3?")]
    theirs = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    ours = load_tokenizer(folder)
    assert theirs == encode_conversation(ours, messages, add_generation_prompt=True)[0]
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert set(ends) == {ours.control_id("<|im_end|>"), ours.eos_id}


def test_a_model_that_is_taught_to_think_gets_the_switch(monkeypatch, tmp_path, flags, capsys):
    """One thought in the data: the folder's template has enable_thinking, and the chat accepts it;
    without any it has not, no think block is ever opened, and --thinking is refused."""
    data = tmp_path / "chats.jsonl"
    for thinks in (False, True):
        if thinks:
            lines = data.read_text().splitlines()
            record = json.loads(lines[0])
            record["conversations"][-1]["reasoning_content"] = "It sat."
            data.write_text("\n".join([json.dumps(record), *lines[1:]]) + "\n")
        run = tmp_path / f"thinks_{thinks}"
        train(monkeypatch, "full_sft", run, *flags["full_sft"], "--max_steps", 1)
        folder = run / "step-00000001"
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        messages = [say("user", "q")]
        plain, off, on = (
            tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False, **options
            )
            for options in ({}, {"enable_thinking": False}, {"enable_thinking": True})
        )
        opening = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
        assert plain == on == opening
        assert off == opening + "<think>\n\n</think>\n\n" * thinks
        monkeypatch.setattr(
            "sys.argv", ["eval_model.py", "--model", str(run), "--prompt", "q", "--thinking"]
        )
        if thinks:
            eval_model.main()
        else:
            with pytest.raises(ValueError, match="--thinking"):
                eval_model.main()


@pytest.mark.parametrize("script", ["full_sft", "lora", "dpo"])
def test_a_folder_with_its_own_template_keeps_it(monkeypatch, tmp_path, base, flags, script):
    """A model with Qwen3's own template is trained and answered through it, and leaves with it."""
    template = (Path(trl.__file__).parent / "chat_templates/qwen3.jinja").read_text("utf-8")
    (base / "chat_template.jinja").write_text(template)
    train(monkeypatch, script, tmp_path / "run", *flags[script], "--max_steps", 1)
    folder = tmp_path / "run" / "step-00000001"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == template
    messages = [say("user", "1?"), say("assistant", "2"), say("user", "3?")]
    for thinking in (False, True):
        theirs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, enable_thinking=thinking, return_dict=True
        )["input_ids"]
        ours = encode_conversation(load_tokenizer(folder), messages, None, True, thinking)
        assert ours.ids == theirs


def test_weights_of_files(monkeypatch, tmp_path, flags, capsys):
    """--data_weights 0 leaves a file out, 2 takes its conversations twice."""
    other = tmp_path / "other.jsonl"
    other.write_text((tmp_path / "chats.jsonl").read_text().replace("What", "Where"))
    argv = list(flags["full_sft"])
    argv.insert(2, str(other))
    args = ["--max_steps", 1, "--val_fraction", 0, "--no-packing", "--batch_size", 1]
    rows = {}
    for weights in ((1, 1), (1, 0), (2, 0.5)):
        name = f"run{weights}"
        train(monkeypatch, "full_sft", tmp_path / name, *argv, *args, "--data_weights", *weights)
        rows[weights] = int(capsys.readouterr().out.split(" rows, ")[0].split(" in ")[-1])
    assert rows == {(1, 1): 48, (1, 0): 24, (2, 0.5): 60}


def test_lora_leaves_the_base_alone(monkeypatch, tmp_path, flags, base):
    """After training the base has its bits, and the run's folder holds nothing but the adapter."""
    seen = {}
    save = lora.save_adapter

    def save_and_look(model, *args):
        seen.update({k: v.clone() for k, v in model.state_dict().items() if ".lora_" not in k})
        save(model, *args)

    monkeypatch.setattr(lora, "save_adapter", save_and_look)
    before = weights_sha256(base)
    train(monkeypatch, "lora", tmp_path / "run", *flags["lora"], "--max_steps", 3)
    state = load_model(base).state_dict()
    assert weights_sha256(base) == before and seen.keys() == state.keys()
    assert all(torch.equal(weight, state[name]) for name, weight in seen.items())
    folder = tmp_path / "run" / "step-00000003"
    tensors = load_file(folder / lora.WEIGHTS_FILE)
    assert len(tensors) == 2 * 7 * 2 and all(".lora_" in name for name in tensors)
    assert all(t.abs().sum() > 0 for t in tensors.values()), "B has not moved from zero"
    assert not (folder / "model.safetensors").exists()


def test_adapters_are_switched_in_the_chat(monkeypatch, tmp_path, flags, base, capsys):
    """eval_model.py --lora answers with the adapter; /lora off answers as the base does."""
    import io

    import eval_model

    for name, seed in (("a", 1), ("b", 2)):
        train(monkeypatch, "lora", tmp_path / name, *flags["lora"], "--max_steps", 4, "--seed",
              seed, "--learning_rate", 0.1, "--lora_alpha", 64)  # fmt: skip
    capsys.readouterr()

    def answers(*flags, stdin):
        argv = ["eval_model.py", "--model", base, *flags, "--temperature", 0, "--max_new_tokens", 8]
        monkeypatch.setattr(sys, "argv", [str(x) for x in argv])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        eval_model.main()
        lines = capsys.readouterr().out.splitlines()
        return [x for x in lines if not x.startswith(("Adapters", "0.0M", "> "))]

    alone = {}
    for name in ("a", "b"):
        alone[name] = answers("--lora", tmp_path / name, stdin="Hi\n")[0]
    assert alone["a"] != alone["b"]
    said = answers(
        "--lora", tmp_path / "a", tmp_path / "b",
        stdin="Hi\n/lora b\n/reset\nHi\n/lora a\n/reset\nHi\n/lora off\n/reset\nHi\n/lora zzz\n",
    )  # fmt: skip
    spoken = [line for line in said if line and not line.startswith("(")]
    assert spoken[:3] == [alone["a"], alone["b"], alone["a"]]
    assert spoken[3] not in alone.values()
    assert any("adapters: a, b" in line for line in said)
    (tmp_path / "other").mkdir()
    second = (tmp_path / "b").rename(tmp_path / "other" / "a")  # both are called "a" now
    said = answers(
        "--lora", tmp_path / "a", second, stdin=f"Hi\n/lora {second}\n/reset\nHi\n/lora zzz\n"
    )
    assert [x for x in said if x and not x.startswith("(")] == [alone["a"], alone["b"]]
    assert any(f"adapters: {tmp_path / 'a'}, {second}" in line for line in said)


def test_a_tiny_learning_rate_still_moves_the_weights(monkeypatch, tmp_path, flags, base):
    """DPO at 1e-6 changes every matrix of the saved folder: masters and files are float32."""
    train(monkeypatch, "dpo", tmp_path / "run", *flags["dpo"], "--max_steps", 1,
          "--warmup_steps", 0, "--learning_rate", 1e-6)  # fmt: skip
    before = load_file(base / "model.safetensors")
    after = load_file(tmp_path / "run" / "step-00000001" / "model.safetensors")
    for name, weight in after.items():
        if weight.ndim == 2 and "embed" not in name:
            assert weight.dtype == torch.float32
            assert (weight != before[name]).float().mean() > 0.5, name


def test_dpo_learns_its_pairs(monkeypatch, tmp_path, flags):
    """Loss starts at log 2, ends lower; accuracy and margin rise; full and with adapters."""
    approx_log_2 = pytest.approx(0.6931, abs=1e-3)
    for name, more in (("full", ["--learning_rate", 1e-3]),
                       ("lora", ["--lora_rank", 4, "--learning_rate", 1e-2])):  # fmt: skip
        train(monkeypatch, "dpo", tmp_path / name, *flags["dpo"], "--max_steps", 30, *more,
              "--val_fraction", 0.2, "--eval_interval", 30, "--save_interval", 30)  # fmt: skip
        first, *lines = [line for line in metrics(tmp_path / name) if "event" not in line]
        assert (first["step"], first["val_margin"]) == (0, 0) and first["val_loss"] == approx_log_2
        assert lines[0]["loss"] == approx_log_2
        assert lines[-2]["loss"] < 0.4 and lines[-2]["margin"] > 0.5
        assert lines[-1]["val_accuracy"] == 1.0
        assert {"val_loss", "val_margin", "val_chosen_reward", "val_rejected_reward",
                "val_chosen_log_prob", "val_rejected_log_prob"} <= lines[-1].keys()  # fmt: skip


def bad_cases(folder: Path):
    """(script, flags, what the line must name)."""
    turns = [say("user", "q"), say("assistant", "a")]
    files = {
        "roles": {"conversations": turns[::-1]},
        "content": {"conversations": [say("user", 3), turns[1]]},
        "tools": {"conversations": [say("system", "s") | {"tools": "[{"}, *turns]},
        "no_rejected": {"chosen": turns},
        "equal": {"chosen": turns, "rejected": turns},
    }
    for name, record in files.items():
        (folder / f"{name}.jsonl").write_text(json.dumps(record) + "\n")
    (folder / "bad_questions.jsonl").write_text('{"question": "q"}\n')
    return [
        ("full_sft", ["--data_path", folder / "roles.jsonl"], "roles.jsonl:1"),
        ("full_sft", ["--data_path", folder / "content.jsonl"], "content.jsonl:1"),
        ("full_sft", ["--data_path", folder / "tools.jsonl"], "tools.jsonl:1"),
        ("full_sft", ["--data_path", folder / "none.jsonl"], "none.jsonl"),
        ("full_sft", ["--max_seq_len", 8], "--max_seq_len 8"),
        ("full_sft", ["--data_weights", 1, 2], "--data_weights"),
        ("full_sft", ["--data_weights", 0], "--data_weights"),
        ("full_sft", ["--questions", folder / "bad_questions.jsonl"], "bad_questions.jsonl:1"),
        ("full_sft", ["--init_from", folder], "--init_from"),
        ("full_sft", ["--val_data_path", folder / "roles.jsonl"], "roles.jsonl:1"),
        ("lora", ["--lora_targets", "nothing"], "--lora_targets nothing"),
        ("lora", ["--lora_rank", 10**6], "--lora_rank"),
        ("dpo", ["--data_path", folder / "no_rejected.jsonl"], "no_rejected.jsonl:1"),
        ("dpo", ["--data_path", folder / "equal.jsonl"], "equal.jsonl:1"),
        ("dpo", ["--data_path", folder / "chats.jsonl"], "chats.jsonl:1"),
        ("dpo", ["--max_seq_len", 8], "--max_seq_len 8"),
    ]


def test_bad_input_is_one_clear_line(monkeypatch, tmp_path, flags, capsys):
    """A mistake names file and line or flag, ends with status 2, and leaves nothing behind."""
    for script, more, expected in bad_cases(tmp_path):
        argv = [f"train_{script}.py", "--out_dir", tmp_path / "run", *flags[script],
                "--max_steps", 1, *more]  # fmt: skip
        monkeypatch.setattr(sys, "argv", [str(x) for x in argv])
        with pytest.raises(SystemExit) as stopped:
            cli.run(SCRIPTS[script].main)
        message = capsys.readouterr().err
        assert stopped.value.code == 2 and expected in message, (script, more, message)
        assert message.startswith("error: ") and "Traceback" not in message
        assert not (tmp_path / "run").exists()


def test_resume_with_other_numbers_is_refused(monkeypatch, tmp_path, flags):
    """Another rank, another loss, another base: each is named, nothing is overwritten."""
    for script, more, expected in (
        ("lora", ["--lora_rank", 4], "lora_rank 8"),
        ("dpo", ["--loss", "ipo"], "loss sigmoid"),
        ("dpo", ["--beta", 0.5], "beta 0.1"),
    ):
        out_dir = tmp_path / f"run_{script}"
        argv = [*flags[script], "--max_steps", 1]
        train(monkeypatch, script, out_dir, *argv)
        with pytest.raises(ValueError, match=expected):
            train(monkeypatch, script, out_dir, *argv, *more)
