"""terminal/local.py: answers of a model in this process."""

import itertools
import json
import shutil
import signal
import sys
from pathlib import Path

import pytest
import served

import eval_model
from dataset.chat import encode_conversation, end_ids
from dataset.tokenizer import load_tokenizer
from model.engine import Engine
from model.generation import generate
from model.hf_format import load_model
from serving.answer import message_of
from terminal.answers import End
from terminal.local import LocalModel


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_tokenizer_dir) -> Path:
    """A tiny chat model with random weights."""
    place = tmp_path_factory.mktemp("local") / "tiny"
    return served.tiny_folder(place, tiny_tokenizer_dir, context=256)


@pytest.fixture
def local(folder, monkeypatch):
    """A function that opens the model as eval_model.py does with some flags."""

    def local(*flags, folder=folder) -> LocalModel:
        monkeypatch.setattr(sys, "argv", ["eval_model.py", *map(str, flags)])
        args = eval_model.parse_args()
        args.max_new_tokens = args.max_new_tokens or 40
        tokenizer = load_tokenizer(folder)
        ends = end_ids(tokenizer, folder)
        return LocalModel(load_model(folder), folder, tokenizer, ends, {}, args)

    return local


def user(text):
    return {"role": "user", "content": text}


def answered(local, messages, attempt=0) -> tuple[dict, End]:
    *deltas, end = local.answer(messages, None, False, attempt)
    return message_of(deltas), end


def test_an_answer_tells_how_it_ended(local):
    """Its tokens are counted, the last one too; whole only if it came to its own end."""
    model = local("--temperature", 0, "--max_new_tokens", 12)
    _, end = answered(model, [user("Hello")])
    assert end.tokens == 12 and not end.is_whole and end.first > 0 < end.rest
    ids, _ = encode_conversation(model.tokenizer, [user("Hello")], add_generation_prompt=True)
    new = list(generate(model.model, ids, 12, set(), temperature=0))
    model.ends = {new[5]}
    _, end = answered(model, [user("Hello")])
    assert end.tokens == new.index(new[5]) + 1 and end.is_whole


def test_a_folders_own_end_is_not_shown(local, folder, tmp_path):
    """An id that only generation_config.json ends answers with stops the answer, unseen."""
    model = local("--temperature", 0)
    ids, _ = encode_conversation(model.tokenizer, [user("Hello")], add_generation_prompt=True)
    new = list(generate(model.model, ids, 40, model.ends, temperature=0))
    place = next(i for i in range(5, 40) if new[i] not in new[:i])
    other = shutil.copytree(folder, tmp_path / "other")
    file = other / "generation_config.json"
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(content | {"eos_token_id": new[place]}))
    message, end = answered(local("--temperature", 0, folder=other), [user("Hello")])
    assert end.is_whole and end.tokens == place + 1
    assert message["content"] == model.tokenizer.decode(new[:place]).strip("\n")


def test_a_seed_draws_anew_for_retry(local):
    """The same words for the same seed and attempt, others for the next attempt."""
    model = local("--temperature", 1, "--seed", 3)
    first, again, other = (answered(model, [user("Hi")], attempt)[0] for attempt in (0, 0, 1))
    assert first == again != other


def test_the_oldest_turns_go_and_the_system_prompt_stays(local, capsys):
    """The ids are those of the newest turns that fit; a turn goes with its calls and results; the
    question itself is never left out."""
    model = local("--max_new_tokens", 50)
    system = {"role": "system", "content": "Be brief."}
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {}}]}
    result = {"role": "tool", "content": "r " * 20}
    done = {"role": "assistant", "content": "Done."}
    turns = [user("first " * 20), call, result, done, user("second"), done, user("third")]
    ids = model.chat_ids([system, *turns], None, False)
    kept, _ = encode_conversation(model.tokenizer, [system, *turns[4:]], None, True)
    assert ids == kept and len(ids) <= 256 - 50
    assert capsys.readouterr().err == "(the oldest turn no longer fits the context: left out)\n"
    long = user("word " * 100)
    only, _ = encode_conversation(model.tokenizer, [system, long], None, True)
    assert model.chat_ids([system, *turns, done, long], None, False) == only
    assert "the oldest 3 turns no longer fit" in capsys.readouterr().err


def test_ctrl_c_waits_for_the_step(local, monkeypatch):
    """KeyboardInterrupt comes between two tokens: the engine keeps what it knows of the chat."""
    model, before = local("--temperature", 0), signal.getsignal(signal.SIGINT)
    expected = answered(model, [user("Hello")])[0]
    step, steps = Engine.step, itertools.count()

    def interrupted(engine):
        if next(steps) == 5:
            signal.raise_signal(signal.SIGINT)
        return step(engine)

    monkeypatch.setattr(Engine, "step", interrupted)
    deltas = []
    with pytest.raises(KeyboardInterrupt):
        deltas.extend(model.answer([user("Hello")], None, False, 0))
    assert next(steps) == 6
    assert not model.engine.has_work and max(row.length for row in model.engine.rows) > 5
    assert answered(model, [user("Hello")])[0] == expected
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_does_not_wait(local, monkeypatch):
    """It may leave a step half done: the next answer comes from a new engine, and is right."""
    model = local("--temperature", 0)
    expected = answered(model, [user("Hello")])[0]
    take, engine = Engine._draw, model.engine

    def interrupted(engine, logits):
        if engine.steps > 60:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return take(engine, logits)

    engine.steps = 58
    monkeypatch.setattr(Engine, "_draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(model.answer([user("Hello")], None, False, 0))
    monkeypatch.undo()
    assert model.engine is not engine
    assert answered(model, [user("Hello")])[0] == expected


@pytest.mark.slow
def test_a_compiled_step_gives_the_same_answer(local):
    """--compile, greedy, for two turns."""
    plain, compiled = local("--temperature", 0), local("--temperature", 0, "--compile")
    messages = [user("Hello")]
    for text in ("And?", "So?"):
        expected = answered(plain, messages)[0]
        assert answered(compiled, messages)[0] == expected
        messages += [expected, user(text)]
