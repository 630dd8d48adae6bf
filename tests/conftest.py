"""Fixtures that several test files share."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

# Tests import the project from the repository root, wherever pytest is started.
ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "model" / "tokenizer"
sys.path.insert(0, str(ROOT))
# Texts in tests are small, and after using threads the tokenizer warns about forked processes.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "A small model learns to write small sentences about small things.",
    "What is 12 + 30? It is 42. What is 7 * 8? It is 56.",
    "从前有一只小猫，它喜欢在花园里看月亮。",
    "今天天气很好，我们一起去公园散步，看见了很多花。",
    "def add(a, b):\n    return a + b\n\n\nfor i in range(10):\n    print(add(i, i))\n",
    "小狗说：“你好，我叫豆豆。”小猫说：“你好，我们做朋友吧！”",
    "Rain falls in spring; summer is warm, autumn is golden and winter brings snow.",
    "Once upon a time there was a little cat. The cat liked to look at the moon.",
]


@pytest.fixture(scope="session")
def tiny_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer of at most 512 entries, made by train_tokenizer.py."""
    import train_tokenizer

    folder = tmp_path_factory.mktemp("tiny_tokenizer")
    data = folder / "text.jsonl"
    lines = [json.dumps({"text": sentence}, ensure_ascii=False) for sentence in SENTENCES * 3]
    data.write_text("\n".join(lines), encoding="utf-8")
    train_tokenizer.main(
        ["--data_path", str(data), "--out_dir", str(folder / "tokenizer"), "--vocab_size", "512"]
    )
    return folder / "tokenizer"


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_tokenizer_dir: Path):
    """The tokenizer of `tiny_tokenizer_dir`, loaded."""
    from dataset.tokenizer import load_tokenizer

    return load_tokenizer(tiny_tokenizer_dir)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory):
    """Our tokenizer and transformers' own, both opened from the folder that is shipped."""
    import transformers

    from dataset.tokenizer import load_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    for name in ("tokenizer.json", "chat_template.jinja"):
        shutil.copy(SHIPPED / name, folder)
    config = json.loads((SHIPPED / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["bos_token"] = "<|reserved_0|>"  # some templates of others begin with it
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
