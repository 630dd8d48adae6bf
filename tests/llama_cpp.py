"""llama.cpp as an independent reader of GGUF files: its server, run inside this process; and models
that know a few texts by heart, so that their likeliest tokens do not hang on a rounding."""

import json
import sys
import urllib.request
from pathlib import Path

import torch
import xllamacpp
from oracle_models import shake

from dataset.chat import NO_THINKING, encode_conversation
from dataset.tokenizer import load_tokenizer
from model.config import LMConfig
from model.generation import generate
from model.hf_format import load_model, save_model
from model.model import MiniMindLM
from scripts import export_gguf

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER = ROOT / "model" / "tokenizer"
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 24, "intermediate_size": 96}  # fmt: skip
EXPERTS = {"use_moe": True, "num_experts": 6, "num_experts_per_tok": 2,
           "moe_intermediate_size": 32, "norm_topk_prob": True}  # fmt: skip
STORIES = [
    "Once upon a time there was a little fox who counted 12 stars every night.",
    "从前有一只小猫，它喜欢在花园里看月亮，数了3颗星星。",
]
CHATS = [("Who are you?", "A very small model."), ("你好，你是谁？", "我是一个很小的模型。")]


class LlamaCpp:
    """One loaded file; exact: float32 throughout, in place of llama.cpp's attention in float16."""

    def __init__(self, file: Path, adapter: Path | None = None, exact: bool = False):
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(file)
        parameters.n_ctx = 1024
        parameters.cpuparams.n_threads = 1
        parameters.warmup = False
        parameters.verbosity = -1
        if exact:
            parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            kinds = xllamacpp.llama_flash_attn_type
            parameters.flash_attn_type = kinds.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if adapter:
            parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
        self.server = xllamacpp.Server(parameters)

    def post(self, path: str, **body) -> dict:
        request = urllib.request.Request(
            self.server.listening_address + path,
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        direct = urllib.request.build_opener(
            urllib.request.ProxyHandler({})
        )  # it is on this machine
        with direct.open(request, timeout=60) as answer:
            return json.loads(answer.read())

    def tokenize(self, text: str, special: bool = True) -> list[int]:
        body = {"content": text, "add_special": True, "parse_special": special}
        return self.post("/tokenize", **body)["tokens"]

    def greedy(self, prompt: str | list[int], count: int) -> list[int]:
        """The likeliest tokens, up to the one that ends the answer."""
        return self.post(
            "/completion", prompt=prompt, n_predict=count, temperature=0, return_tokens=True,
            cache_prompt=False,
        )["tokens"]  # fmt: skip

    def log_probs(self, ids: list[int], entries: int) -> dict[int, float]:
        """The log-probability of every token after `ids`.

        The next token is forced, which leaves these as they are: the server tells nothing of one
        that is half a character.
        """
        answer = self.post(
            "/completion", prompt=ids, n_predict=1, temperature=0, n_probs=entries,
            cache_prompt=False, logit_bias=[["a", 1000]],
        )  # fmt: skip
        top = answer["completion_probabilities"][0]["top_logprobs"]
        return {entry["id"]: entry["logprob"] for entry in top}

    def prompt_of(self, messages: list[dict], **more) -> str:
        return self.post("/apply-template", messages=messages, **more)["prompt"]

    def chat(self, messages: list[dict], **more) -> dict:
        answer = self.post("/v1/chat/completions", messages=messages, temperature=0, **more)
        return answer["choices"][0] | {"prompt_tokens": answer["usage"]["prompt_tokens"]}


@torch.enable_grad()
def teach(model: MiniMindLM, rows: list[tuple[list[int], list[int]]], steps: int = 80):
    """Rows (ids, mask) by heart, so that the likeliest token leads by far."""
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
    for _ in range(steps):
        total = 0
        for ids, mask in rows:
            X, Y = torch.tensor([ids[:-1]]), torch.tensor(ids[1:])
            losses = torch.nn.functional.cross_entropy(model(X)[0][0], Y, reduction="none")
            weights = torch.tensor(mask[1:], dtype=torch.float32)
            total = total + (losses * weights).sum() / weights.sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert total.item() < 0.5
    model.eval()


def chat_row(tokenizer, question: str, answer: dict, tools=None, thinking=False):
    """(ids, mask) of one answer where it is generated."""
    ids, _ = encode_conversation(
        tokenizer, ask(question), tools, add_generation_prompt=True, enable_thinking=thinking
    )
    whole, _ = encode_conversation(tokenizer, [*ask(question), answer], tools)
    assert whole[: len(ids)] == ids and whole[-2] == tokenizer.control_id("<|im_end|>")
    return whole[:-1], [0] * len(ids) + [1] * (len(whole) - 1 - len(ids))


def ask(question: str) -> list[dict]:
    return [{"role": "user", "content": question}]


def lessons(tokenizer) -> list[tuple[list[int], list[int]]]:
    """STORIES and CHATS as ids and masks."""
    rows = []
    for story in STORIES:
        ids = [*tokenizer.encode_text(story), tokenizer.eos_id]
        rows.append((ids, [1] * len(ids)))
    for question, answer in CHATS:
        rows.append(chat_row(tokenizer, question, {"role": "assistant", "content": answer}))
    return rows


def make_folder(folder: Path, taught=True, template=NO_THINKING, rows=lessons, **numbers) -> Path:
    """A model folder with the shipped tokenizer; taught, or with random weights of large size."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(TOKENIZER)
    tokenizer.chat_template = template
    model = MiniMindLM(LMConfig(**{"vocab_size": 6400} | SIZES | numbers))
    if taught:
        teach(model, rows(tokenizer))
    else:
        shake(model)
    folder.mkdir()
    save_model(model, folder, [tokenizer.control_id("<|im_end|>"), tokenizer.eos_id])
    tokenizer.save(folder, chat_template=True)
    return folder


def export(monkeypatch, *flags) -> Path:
    """Run the script; the folder it wrote."""
    monkeypatch.setattr(sys, "argv", ["export_gguf.py", *map(str, flags)])
    export_gguf.main()
    return Path(flags[flags.index("--out_dir") + 1])


def greedy(folder: Path, ids: list[int], count: int = 40) -> list[int]:
    return list(generate(load_model(folder), ids, count, {0, 2}, temperature=0))


def largest_difference(llama: LlamaCpp, model: MiniMindLM, ids: list[int]) -> float:
    """Between the log-probabilities of all next tokens after ids."""
    theirs = llama.log_probs(ids, model.config.vocab_size)
    assert len(theirs) == model.config.vocab_size
    with torch.no_grad():
        ours = model(torch.tensor([ids]))[0][0, -1].log_softmax(-1).tolist()
    return max(abs(theirs[id] - log_prob) for id, log_prob in enumerate(ours))
