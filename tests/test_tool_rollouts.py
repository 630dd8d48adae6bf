"""Completions that call tools: the model speaks, tools answer, and only what it says is learned."""

import json
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset import chat
from dataset.chat import after_tools, encode_conversation, training_sequences
from dataset.tokenizer import load_tokenizer
from model.decoding_layers import for_decoding
from model.engine import Drawn
from model.request import LogProb
from model.sampling import Sampling
from tasks.rewards import make_rewards
from tasks.task import Prompt
from tests.conftest import ROOT
from tests.oracle_models import our_model, random_numbers
from tests.test_chat_format import QWEN3, QWEN3_INSTRUCT, rendered, template_of
from tests.test_rollouts import run_of
from tools.calls import TOOLS, load_tools, named_tools
from train_grpo import token_weights
from training import completions
from training.cli import MAX_TURNS
from training.completions import Tools, names_of, sample, tools_of
from training.distributed import Ranks
from training.prompts import prompt_datasets
from training.rollouts import Rollouts, in_words, token_log_probs

CALCULATOR = {"calculator": TOOLS["calculator"]}
SHORT = [{"name": "calculator", "description": "d", "parameters": {}}]
ASK = [{"role": "user", "content": "What is 3 + 4?"}]
CALL = {"name": "calculator", "arguments": {"expression": "3 + 4"}}
SAID = [
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": '{"result": 7}'},
    {"role": "assistant", "content": "It is 7."},
]


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = load_tokenizer(ROOT / "model" / "tokenizer")
    tokenizer.chat_template = chat.NO_THINKING
    return tokenizer


def prompt_of(tokenizer, messages=ASK, tools=SHORT, answer="7"):
    ids, _ = encode_conversation(tokenizer, messages, tools, add_generation_prompt=True)
    return Prompt(messages[-1]["content"], ids, answer, messages, tools)


@pytest.fixture(scope="module")
def caller(tokenizer):
    """A tiny model that knows one conversation by heart: question, call, result, answer."""
    torch.manual_seed(0)
    model = our_model(
        random_numbers(1, vocab_size=tokenizer.vocab_size, max_position_embeddings=1024)
    )
    ((ids, mask),) = training_sequences(tokenizer, [*ASK, *SAID], SHORT)
    ids, mask = torch.tensor([ids]), torch.tensor([mask]) > 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        logits, _ = model(ids[:, :-1])
        told = mask[:, 1:]
        loss = torch.nn.functional.cross_entropy(logits[told], ids[:, 1:][told])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    return model


def test_the_conversation_is_that_of_a_chat(tokenizer, caller):
    """Greedy: the call is made, the calculator answers, and all ids and masks are the template's.

    The reference is the whole conversation, encoded with its real result.
    """
    prompt = prompt_of(tokenizer)
    fast = for_decoding(caller).eval()
    tools = Tools(CALCULATOR, 3)
    ((made,),) = sample(
        fast, tokenizer, [prompt], ["s"], 1, 200, Sampling(temperature=0), tools=tools
    )
    ids, mask = encode_conversation(tokenizer, [*ASK, *SAID], SHORT)
    begin = len(prompt.ids)
    assert made.ids == ids[begin:-1]  # the last newline is behind the end of the turn
    assert made.is_said == [bool(m) for m in mask[begin:-1]] and not all(made.is_said)
    one = made.completion
    assert one.messages == SAID and one.calls == [CALL] and not one.is_cut
    assert one.text == one.raw == "It is 7."
    assert one.ids == [id for id, is_said in zip(made.ids, made.is_said) if is_said]
    assert in_words(made) == (' ⟶  calculator({"expression": "3 + 4"}) ⟵ {"result": 7} ⟶ It is 7.')
    (reward,) = [judge for _, _, judge in make_rewards(["number=1"])]
    assert reward([one]) == [1.0]
    alone = sample(fast, tokenizer, [prompt], ["s"], 1, 200, Sampling(temperature=0))[0][0]
    assert alone.completion.messages == SAID[:1] and all(alone.is_said)
    assert alone.completion.text == ""  # a call is not said aloud
    assert reward([alone.completion]) == [0.0]


def test_prompts_and_tools(tokenizer, tmp_path):
    """Records keep the tools that they describe, others get those of --tools; who is not there is
    named before training.
    """
    own = [{"name": f"tool_{i}", "description": "d", "parameters": {}} for i in range(7)]
    system = {"role": "system", "content": "", "tools": json.dumps(own)}
    placeholder = {"role": "assistant", "content": ""}
    agent = {"conversations": [system, *ASK, placeholder], "gt": ["7"]}
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in (
        agent, {"question": "What is 1 + 1?", "answer": "2"}
    )))  # fmt: skip
    lines = []
    run = SimpleNamespace(say=lines.append, ranks=Ranks(0, 0, 1, torch.device("cpu")))
    args = SimpleNamespace(
        data_path=[str(data)], val_data_path=None, on_bad_record="stop", reward=["values=1"],
        val_fraction=0.0, max_seq_len=2000, max_new_tokens=10, enable_thinking=False,
    )  # fmt: skip
    prompts, _ = prompt_datasets(args, tokenizer, run, Tools(CALCULATOR, 3))
    told = {prompt.text: names_of(prompt) for prompt in prompts.prompts}
    assert told == {
        ASK[0]["content"]: [f"tool_{i}" for i in range(7)], "What is 1 + 1?": ["calculator"],
    }  # fmt: skip
    (line,) = [line for line in lines if "--tools" in line]
    assert "tool_0, tool_1, tool_2, tool_3, tool_4 and 2 more" in line


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 1.15])
def test_only_what_the_model_says_is_learned(tokenizer, caller, temperature, is_compiled):
    """Rows have a loss on the model's tokens and no other; there the ratio is 1 to 1e-5.

    Nearby in a row are conversations of one turn and of several, cut and not.
    """
    run = run_of(
        caller, temperature=temperature, max_new_tokens=90, num_generations=6, max_seq_len=700
    )
    run.compiled = None if is_compiled else caller
    rollouts = Rollouts(run, tokenizer, make_rewards(["number=1"]), Tools(CALCULATOR, 3))
    caller.eval()
    groups = rollouts.sample(list(enumerate([prompt_of(tokenizer), prompt_of(tokenizer)])))
    samples = [one for group in groups for one in group]
    turns = [len([m for m in s.completion.messages if m["role"] == "assistant"]) for s in samples]
    assert max(turns) > 1 and (temperature == 1 or len(set(turns)) > 1)
    rewards = rollouts.judge(groups)
    numbers = torch.arange(12.0).view(2, 6)
    batches = rollouts.rows(groups, rewards, numbers, token_weights)
    told: dict[int, list[int]] = {}
    for rows in batches:
        with torch.no_grad():
            logits, _ = caller(**rows.inputs)
            old, _ = token_log_probs(logits, rows.Y, temperature)
        is_real = rows.mask > 0
        assert ((old - rows.sampled).abs() * rows.mask).max() < 1e-5
        for number, token in zip(rows.advantages[is_real], rows.Y[is_real]):
            told.setdefault(int(number), []).append(int(token))
        assert (rows.weights[~is_real] == 0).all()
    assert told == {i: one.completion.ids for i, one in enumerate(samples)}
    assert any(len(one.ids) > len(one.completion.ids) for one in samples)
    figures = {name: sum(r.figures[name].item() for r in batches) for name in batches[0].figures}
    answers = sum(m["role"] == "tool" for s in samples for m in s.completion.messages)
    assert figures["calls"] == pytest.approx(answers / 12)
    assert figures["length"] == pytest.approx(sum(len(s.completion.ids) for s in samples) / 12)


class Scripted:
    """In place of an engine: says what it is told to, turn by turn, whatever it is asked."""

    def __init__(self, turns):
        self.turns, self.requests, self.waiting = turns, [], []

    def __call__(self, *_, **__):
        return self

    def add(self, request, as_next=False):
        assert request.max_new_tokens > 0
        self.requests.append(request)
        self.waiting.append(request)

    @property
    def has_work(self):
        return bool(self.waiting)

    def step(self):
        request, drawn = self.waiting.pop(0), []
        ids = self.turns[min(len(self.requests), len(self.turns)) - 1]
        for id in ids[: request.max_new_tokens]:
            request.tokens.append(id)
            request.ending = (
                "stop" if id in request.stop_ids
                else "length" if len(request.tokens) == request.max_new_tokens else ""
            )  # fmt: skip
            drawn.append(Drawn(request, id, LogProb(-1.0, []), request.ending != ""))
        return drawn


@pytest.fixture
def say(monkeypatch, tokenizer):
    """(the Sample, the engine): what comes of a model that says these messages or ids in turn."""

    def talk(*turns, tools=CALCULATOR, max_turns=3, limit=600, prompt=None):
        ids_of = [turn if isinstance(turn, list) else ids(tokenizer, turn) for turn in turns]
        engine = Scripted(ids_of)
        monkeypatch.setattr(completions, "Engine", engine)
        prompt = prompt or prompt_of(tokenizer)
        kinds = Tools(tools, max_turns)
        ((made,),) = sample(None, tokenizer, [prompt], ["s"], 1, limit, Sampling(), tools=kinds)
        assert len(made.log_probs) == sum(made.is_said) == len(made.completion.ids)
        assert len(made.ids) == len(made.is_said) <= limit
        return made, engine

    return talk


def ids(tokenizer, message):
    """The ids of an assistant's message, up to the end of its turn."""
    whole, mask = encode_conversation(tokenizer, [*ASK, message])
    return [id for id, m in zip(whole, mask) if m]


def calls(*calls):
    return {"role": "assistant", "content": "", "tool_calls": list(calls)}


def results(made):
    return [m["content"] for m in made.completion.messages if m["role"] == "tool"]


def test_turns_end(say, tokenizer):
    """At --max_turns, at the longest completion, at the end of a text: no tool answers there."""
    answer = {"role": "assistant", "content": "7"}
    made, engine = say(calls(CALL), calls(CALL), calls(CALL), answer)
    assert len(engine.requests) == 3 and len(results(made)) == 2
    assert len(made.completion.calls) == 3 and not made.completion.is_cut
    seeds = [request.seed for request in engine.requests]
    assert len(set(seeds)) == 3 and seeds[0] == "s"  # every turn draws anew
    for before, request in zip(engine.requests, engine.requests[1:]):
        assert request.prompt[: len(before.prompt)] == before.prompt

    one_call = ids(tokenizer, calls(CALL))
    between = len(after_tools(tokenizer, [*ASK, *SAID[:2]], SHORT))
    made, engine = say(one_call, answer, limit=len(one_call) + between)
    assert made.completion.is_cut and not results(made) and made.ids == one_call
    made, engine = say(one_call, answer, limit=len(one_call) + between + 1)
    assert made.completion.is_cut and results(made) == ['{"result": 7}']
    assert engine.requests[1].max_new_tokens == 1 and made.is_said[-2:] == [False, True]

    made, engine = say([*one_call[:-1], tokenizer.eos_id], answer)
    assert len(engine.requests) == 1 and not made.completion.is_cut
    made, engine = say(one_call[:-3], answer, limit=len(one_call) - 3)  # a call that is cut off
    assert len(engine.requests) == 1 and made.completion.is_cut and not made.completion.calls
    made, engine = say(calls(CALL), answer, tools={})
    assert len(engine.requests) == 1 and made.completion.calls == [CALL]


def test_what_tools_answer(say, tokenizer, tmp_path):
    """Whatever is asked, the model gets a text, several calls several; the run goes on."""
    file = tmp_path / "mine.py"
    file.write_text(
        'def halve(n: int) -> float:\n    """Half of it."""\n    return n / 2\n\n'
        'def fail(n: int) -> float:\n    """Fail."""\n    return 1 / 0\n'
    )
    tools = load_tools(file) | CALCULATOR
    described = [tool.description for tool in tools.values()]
    prompt = prompt_of(tokenizer, tools=[*described, {"name": "absent", "description": "d"}])
    made, _ = say(
        calls(CALL, {"name": "halve", "arguments": {"n": 5}}),
        calls({"name": "fail", "arguments": {"n": 1}}, {"name": "absent", "arguments": {}}),
        {"role": "assistant", "content": "so"},
        tools=tools, prompt=prompt,
    )  # fmt: skip
    seven, half, failed, absent = results(made)
    assert seven == '{"result": 7}' and half == "2.5"
    assert failed == "error: fail failed: ZeroDivisionError: division by zero"
    assert absent.startswith("error: unknown tool 'absent'")
    assert made.completion.text == "so" and len(made.completion.calls) == 4
    # what a prompt does not describe its completions cannot call
    made, _ = say(calls({"name": "halve", "arguments": {"n": 5}}), calls(), tools=tools)
    assert results(made) == ["error: unknown tool 'halve'; expected one of calculator"]


CONTROLS = ["<tool_response>", "</tool_response>", "<tool_call>", "<|im_end|>", "<|im_start|>"]


@settings(max_examples=60, deadline=None)
@given(
    text=st.lists(st.sampled_from([*CONTROLS, "user\n", '{"result": 9}', "\n", " x"]), min_size=1)
)
def test_texts_never_become_tool_results(both, text):
    """Control tokens' names in a question, or in what a tool says, are letters to the model."""
    ours, _ = both
    text = "".join(text)
    controls = set(ours.control_tokens.values())
    for template in (chat.NO_THINKING, chat.THINKING):
        ours.chat_template = template
        asked = [{"role": "user", "content": text}]
        plain = [{"role": "user", "content": "x"}]
        counts = [
            [id for id in encode_conversation(ours, m, SHORT, True).ids if id in controls]
            for m in (asked, plain)
        ]
        assert counts[0] == counts[1]
        told = [*plain, SAID[0], {"role": "tool", "content": text}]
        said = [*plain, *SAID[:2]]
        counts = [
            [id for id in after_tools(ours, m, SHORT) if id in controls] for m in (told, said)
        ]
        assert counts[0] == counts[1]
        assert text.strip() in ours.decode(after_tools(ours, told, SHORT))


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("name", ["thinking", "no_thinking", "qwen3", "qwen3_instruct", "llama3_1"])
def test_what_stands_between_turns_is_the_templates(both, name, thinking):
    """One answer or two, in every template: transformers' ids behind the end of the call's turn."""
    ours, theirs = both
    template = {
        "thinking": chat.THINKING, "no_thinking": chat.NO_THINKING, "qwen3": QWEN3,
        "qwen3_instruct": QWEN3_INSTRUCT, "llama3_1": template_of("llama3_1.jinja"),
    }[name]  # fmt: skip
    ours.chat_template = template
    described = [TOOLS["calculator"].description]
    thoughts = {"reasoning_content": "hm"} if thinking and name == "thinking" else {}
    for more in ([], [] if name == "llama3_1" else [{"role": "tool", "content": '{"b": 2}'}]):
        messages = [*ASK, SAID[0] | thoughts, SAID[1], *more]
        openai = {"tool_calls": [{"type": "function", "function": CALL}]}  # some read this alone
        whole = rendered(
            theirs, template, [*ASK, SAID[0] | openai | thoughts, SAID[1], *more], described,
            add_generation_prompt=True, enable_thinking=thinking,
        )  # fmt: skip
        try:
            between = after_tools(ours, messages, described, thinking)
        except ValueError as error:
            assert name == "qwen3" and not thoughts and "shows an answer otherwise" in str(error)
            continue
        assert whole[-len(between) :] == between
        assert whole[-len(between) - 1] == chat.stop_ids(ours)[0]
        assert "result" in ours.decode(between)


def test_flags(tmp_path, tokenizer):
    """Every wrong word of --tools is told by name; right ones are loaded once, in order."""
    table = tmp_path / "prices.csv"
    table.write_text("name,value\npear,3\n")
    own = tmp_path / "own.py"
    own.write_text('def twice(n: int) -> int:\n    """Twice."""\n    return 2 * n\n')
    assert list(named_tools(["all"])) == list(TOOLS)
    assert list(named_tools([str(own), "calculator", str(table)])) == [
        "twice", "calculator", "lookup",
    ]  # fmt: skip
    for specs, told in (
        (["calculater"], "expected all, calculator, get_time, convert_units, or a .py"),
        (["all", "calculator"], "there is a tool of the name calculator already"),
        ([str(tmp_path / "none.py")], "none.py"),
    ):
        with pytest.raises(ValueError, match=told):
            named_tools(specs)

    class Args:
        tools, max_turns, enable_thinking = ["calculator"], 2, False

    found = tools_of(Args, tokenizer)
    assert found.max_turns == 2 and found.descriptions == [TOOLS["calculator"].description]
    Args.tools = ["calculater"]
    with pytest.raises(ValueError, match="--tools: expected all, calculator"):
        tools_of(Args, tokenizer)
    Args.tools = None
    with pytest.raises(ValueError, match="--max_turns 2: there are no --tools"):
        tools_of(Args, tokenizer)
    Args.max_turns = MAX_TURNS
    assert tools_of(Args, tokenizer) == Tools()
