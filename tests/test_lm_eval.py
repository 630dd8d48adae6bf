"""lm_eval's local-completions model, asked over HTTP, gives the scores of its hf model on a folder.

Tasks are written here and read from files; lm_eval runs in a process that can reach nothing but
this machine.
"""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import SENTENCES
from served import TEMPLATE, serving

from dataset.tokenizer import load_tokenizer
from model.config import LMConfig
from model.hf_format import save_model
from model.model import MiniMindLM
from tests.other_tools import ask

CONTEXT = 128  # shorter than some texts
CHOICES = [
    ("The quick brown fox jumps over the lazy", [" dog, and the dog", " cat", "月亮"], 0),
    ("What is 12 + 30? It is", [" 56.", " 42.", " 4", " 42. What is 7 * 8?"], 1),
    ("从前有一只小猫，\n", ["它喜欢下雨。", "它喜欢在花园里看月亮。"], 1),
    ("def add(a, b):\n    return", [" a + b\n\n\nfor i in", " b", " add(i, i))\n"], 2),
    ("小狗说：“你好，", ["我叫豆豆。”", "我们做朋友吧！”", "😀"], 0),
    ("A small model learns to write small", [" sentences about small things.", " cats."], 1),
]
TEXTS = [*SENTENCES, "The cat 😀 looked — at the <|im_end|> moon. ", " ".join(SENTENCES * 2), "猫"]
PROMPTS = ["Once upon a time", "Rain falls in", "What is", "今天天气", "从前", "def add(", "dog 😀"]

TASKS = {
    "choices": {
        "output_type": "multiple_choice", "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}", "target_delimiter": "",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "texts": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "prompts": {
        "output_type": "generate_until", "doc_to_text": "{{text}}", "doc_to_target": "",
        "generation_kwargs": {"until": ["the moon", "。", " 5"], "max_gen_toks": 24},
        "metric_list": [{"metric": "exact_match"}],
    },
}  # fmt: skip
RECORDS = {
    "choices": [{"question": q, "choices": c, "answer": a} for q, c, a in CHOICES],
    "texts": [{"text": text} for text in TEXTS],
    "prompts": [{"text": text} for text in PROMPTS],
}

EVALUATE = """
import json, socket, sys
connect = socket.socket.connect
def only_here(self, address):
    assert self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1"), address
    return connect(self, address)
socket.socket.connect = only_here
import lm_eval
from lm_eval.tasks import TaskManager
tasks, models = sys.argv[1], json.loads(sys.argv[2])
manager = TaskManager(include_path=tasks, include_defaults=False)
found = {}
for name, (kind, arguments, batch, asked) in models.items():
    said = lm_eval.simple_evaluate(kind, arguments, asked, batch_size=batch, task_manager=manager,
                                   bootstrap_iters=0, log_samples=True)
    found[name] = {
        "scores": {task: {k: v for k, v in numbers.items() if isinstance(v, float)}
                   for task, numbers in said["results"].items()},
        "answers": {task: [sample["filtered_resps"] for sample in
                           sorted(samples, key=lambda sample: sample["doc_id"])]
                    for task, samples in said["samples"].items()},
    }
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_tokenizer_dir) -> Path:
    """A model that knows the sentences half, and that they end."""
    folder = tmp_path_factory.mktemp("models") / "half"
    folder.mkdir()
    torch.manual_seed(0)
    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    config = LMConfig(
        vocab_size=512, hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=96, max_position_embeddings=CONTEXT,
    )  # fmt: skip
    model = MiniMindLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rows = [[tokenizer.eos_id, *ids, tokenizer.eos_id] for ids in tokenizer.encode_texts(SENTENCES)]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.eos_id] * (longest - len(row)) for row in rows])
    for _ in range(80):
        logits = model(ids[:, :-1])[0]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    save_model(model.eval(), folder, tokenizer.eos_id)
    tokenizer.save(folder, chat_template=False)
    shutil.copyfile(TEMPLATE, folder / "chat_template.jinja")
    return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """A folder with the tasks as lm_eval reads them; JSON is YAML."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, task in TASKS.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(record) + "\n" for record in RECORDS[name]))
        task = task | {
            "task": name, "dataset_path": "json", "test_split": "test",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
        }  # fmt: skip
        (folder / f"{name}.yaml").write_text(json.dumps(task))
    return folder


@pytest.fixture(scope="module")
def found(folder, tasks, tmp_path_factory) -> dict:
    """What lm_eval says of the folder by its hf model, and of the server in several ways."""
    everything, as_texts = list(TASKS), ["choices", "prompts"]
    with serving(folder) as (url, _):
        api = {
            "model": folder.name, "tokenizer": str(folder), "base_url": f"{url}/v1/completions",
            "max_length": CONTEXT,
        }  # fmt: skip
        # 2 less: local-completions keeps a place for the token that is drawn, and takes windows of
        # one less
        here = {"pretrained": str(folder), "device": "cpu", "dtype": "float32",
                "max_length": CONTEXT - 2}  # fmt: skip
        text = api | {"tokenized_requests": False}
        models = {
            "hf": ("hf", here, 1, everything),
            "ids": ("local-completions", api, 1, everything),
            "ids at once": ("local-completions", api | {"num_concurrent": 4}, 3, everything),
            "texts": ("local-completions", text, 1, as_texts),
            "texts at once": ("local-completions", text | {"num_concurrent": 4}, 3, as_texts),
        }
        cache = str(tmp_path_factory.mktemp("cache"))
        return ask(
            sys.executable, EVALUATE, tasks, json.dumps(models), HF_HOME=cache,
            HF_DATASETS_OFFLINE="1",
        )  # fmt: skip


IDS, TEXTS_SENT = ["ids", "ids at once"], ["texts", "texts at once"]


@pytest.mark.parametrize("way", IDS)
def test_scores_are_those_of_the_hf_model(found, way):
    """Accuracies equal; perplexity and bits per byte to a millionth."""
    expected, scores = found["hf"]["scores"], found[way]["scores"]
    assert scores == {task: pytest.approx(expected[task], rel=1e-6) for task in TASKS}
    assert {"acc,none", "acc_norm,none"} <= set(scores["choices"])
    assert {"word_perplexity,none", "bits_per_byte,none"} <= set(scores["texts"])


@pytest.mark.parametrize("way", IDS)
def test_log_likelihoods_of_texts_are_alike(found, way):
    """To 1e-3 nats; of texts longer than the context, in windows, too."""
    expected, got = (
        [float(answer) for [answer] in found[name]["answers"]["texts"]] for name in ("hf", way)
    )
    assert got == pytest.approx(expected, abs=1e-3) and len(got) == len(TEXTS)


@pytest.mark.parametrize("way", IDS + TEXTS_SENT)
def test_choices_are_judged_alike(found, folder, way):
    """Log-likelihoods to 1e-3 nats, and which choice is what the model itself would write.

    Sent as text, a choice whose first character has tokens in common with the question's last is
    left out: no text has the ids that lm_eval means.
    """
    tokenizer = load_tokenizer(folder)
    compared = 0
    for number, (question, choices, _) in enumerate(CHOICES):
        begin = tokenizer.encode_text(question)
        for place, choice in enumerate(choices):
            whole = tokenizer.encode_text(question + choice)
            if way in TEXTS_SENT and whole[: len(begin)] != begin:
                continue
            expected, got = (
                found[name]["answers"]["choices"][number][place] for name in ("hf", way)
            )
            assert got == [pytest.approx(expected[0], abs=1e-3), expected[1]], (question, choice)
            compared += 1
    assert compared >= 14
    greedy = {is_greedy for answers in found[way]["answers"]["choices"] for _, is_greedy in answers}
    assert greedy == {True, False}


@pytest.mark.parametrize("way", IDS + TEXTS_SENT)
def test_generated_texts_are_equal(found, way):
    """Up to a stop string, an end of text or so many tokens."""
    assert found[way]["answers"]["prompts"] == found["hf"]["answers"]["prompts"]
