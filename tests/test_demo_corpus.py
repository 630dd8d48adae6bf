"""The demo corpus is reproducible, true, in its schema, and keeps its held-out questions apart."""

import calendar
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dataset.demo import DEMO_VERSION, FILES, write_demo
from dataset.demo_text import story_prompts as prompts_module
from dataset.demo_text.articles import FACTS
from dataset.demo_text.facts import answer, held_out_question, statements, training_questions
from dataset.demo_text.manners import manners

REPOSITORY = Path(__file__).resolve().parent.parent
QUESTIONS = ("questions.jsonl", "multi_turn_questions.jsonl", "lora_questions.jsonl")
NUMBERS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
fifteen sixteen seventeen eighteen nineteen twenty twenty-one twenty-two twenty-three twenty-four
twenty-five"""
NUMBER_WORDS = NUMBERS.split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("demo")
    write_demo(path, seed=0)
    return path


@pytest.fixture(scope="module")
def records(folder):
    return {
        name: [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]
        for name in FILES
    }


def _messages_shown(records):
    """Return every message that a model is taught to prefer (rejected answers are wrong)."""
    for name in ("sft.jsonl", "reasoning.jsonl", "lora.jsonl"):
        for record in records[name]:
            yield from record["conversations"]
    for record in (*records["dpo.jsonl"], *records["manners_pairs.jsonl"]):
        yield from record["chosen"]


@pytest.fixture(scope="module")
def true_text(records):
    """All text that claims to be true, one document or message a line."""
    parts = [record["text"] for record in records["pretrain.jsonl"]]
    for message in _messages_shown(records):
        parts += [message["content"], message.get("reasoning_content", "")]
    parts += [record["answer"] for record in records["questions.jsonl"]]
    return "\n".join(parts)


def test_same_seed_gives_the_same_bytes_in_another_process(folder, tmp_path):
    """The same seed gives the same bytes, also under another string hash seed."""
    environment = dict(os.environ, PYTHONHASHSEED="12345")
    command = [sys.executable, "-m", "dataset.demo", "--out_dir", str(tmp_path), "--show", "3"]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
    )
    for name in (*FILES, "demo.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name
    assert done.stdout.count("Once upon a time") == 3
    assert all(name in done.stdout for name in FILES)


def test_another_seed_gives_other_text(folder, tmp_path):
    """Another seed changes the training files; it is not the same text in another order."""
    paths = write_demo(tmp_path, seed=1)
    for name in ("pretrain.jsonl", "sft.jsonl", "lora.jsonl", "dpo.jsonl", "questions.jsonl"):
        assert paths[name].read_bytes() != (folder / name).read_bytes(), name
    zero = set((folder / "pretrain.jsonl").read_text("utf-8").splitlines())
    one = set(paths["pretrain.jsonl"].read_text("utf-8").splitlines())
    assert len(zero & one) < 0.05 * len(one)


def test_write_demo_is_idempotent_and_repairs_damage(folder, tmp_path):
    """A complete folder is left alone; damaged and missing files are written again."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    paths = write_demo(copy, seed=0)
    assert sorted(paths) == sorted(FILES)
    stamps = {name: path.stat().st_mtime_ns for name, path in paths.items()}
    whole = {name: path.read_bytes() for name, path in paths.items()}
    write_demo(copy, seed=0)
    assert stamps == {name: path.stat().st_mtime_ns for name, path in paths.items()}

    paths["sft.jsonl"].write_bytes(whole["sft.jsonl"][:-7])
    paths["dpo.jsonl"].unlink()
    write_demo(copy, seed=0)
    assert whole == {name: path.read_bytes() for name, path in paths.items()}
    assert sorted(path.name for path in copy.iterdir()) == sorted((*FILES, "demo.json"))

    (copy / "demo.json").write_text("{", encoding="utf-8")
    write_demo(copy, seed=0)
    manifest = json.loads((copy / "demo.json").read_text())
    assert (manifest["version"], manifest["seed"]) == (DEMO_VERSION, 0)


@pytest.mark.parametrize("arguments", [["--show", "-1"], ["--out_dir", "README_AS_FILE"]])
def test_a_users_mistake_ends_with_one_line_and_status_2(arguments, tmp_path):
    """A user's mistake ends with exit status 2 and no traceback."""
    (tmp_path / "README_AS_FILE").write_text("a file, not a folder")
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY))
    command = [sys.executable, "-m", "dataset.demo", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "error: " in done.stderr.splitlines()[-1]


def test_sizes(folder, records):
    """The files have the sizes that the demo run and its documentation count on."""
    size = (folder / "pretrain.jsonl").stat().st_size
    assert 4_000_000 < size < 5_300_000
    assert 5_000 < len(records["sft.jsonl"]) < 6_000
    assert len(records["lora.jsonl"]) == 1_200
    assert len(records["dpo.jsonl"]) == 1_500
    assert len(records["questions.jsonl"]) >= 200
    assert len(records["multi_turn_questions.jsonl"]) == 96
    assert len(records["lora_questions.jsonl"]) >= 60
    assert len(records["story_prompts.jsonl"]) == 40
    assert len(records["calculator.jsonl"]) == 300
    assert len(records["manners_pairs.jsonl"]) == 400
    assert len(records["manners.jsonl"]) == 500
    assert len(records["manners_questions.jsonl"]) == 100


def test_documents_are_different_and_of_a_passage_in_length(records):
    """No pretraining document occurs twice, and most English ones have 40 to 150 words."""
    texts = [record["text"] for record in records["pretrain.jsonl"]]
    assert len(set(texts)) == len(texts)
    lengths = [len(text.split()) for text in texts if text.replace("×", "").isascii()]
    assert sum(40 <= n <= 150 for n in lengths) > 0.9 * len(lengths)
    assert max(lengths) <= 160


def _check_conversation(conversation):
    roles = [message["role"] for message in conversation]
    assert roles[-1] == "assistant" and "user" in roles
    if roles[0] == "system":
        roles = roles[1:]
    assert roles[0] == "user" and "system" not in roles
    tool_names = []
    for i, message in enumerate(conversation):
        assert set(message) <= {"role", "content", "reasoning_content", "tools", "tool_calls"}
        assert isinstance(message["content"], str)
        assert message["content"].strip() == message["content"]
        if message["role"] == "system" and "tools" in message:
            tools = json.loads(message["tools"])
            assert all(set(tool) == {"name", "description", "parameters"} for tool in tools)
            tool_names = [tool["name"] for tool in tools]
        if message["role"] == "tool":
            assert isinstance(json.loads(message["content"]), dict)
            assert "tool_calls" in conversation[i - 1]
        if "tool_calls" in message:
            assert message["content"] == ""
            for call in json.loads(message["tool_calls"]):
                assert set(call) == {"name", "arguments"} and call["name"] in tool_names
        elif message["role"] != "tool":
            assert message["content"]
    for before, after in itertools.pairwise(roles):
        assert (before, after) in {
            ("user", "assistant"),
            ("assistant", "user"),
            ("assistant", "tool"),
            ("tool", "assistant"),
        }


def test_schema(records):
    """Every record has exactly the fields of its file, and conversations are well formed."""
    assert all(set(r) == {"text"} and r["text"].strip() for r in records["pretrain.jsonl"])
    for name in ("sft.jsonl", "reasoning.jsonl", "lora.jsonl"):
        for record in records[name]:
            assert set(record) == {"conversations"}
            _check_conversation(record["conversations"])
    for record in (*records["dpo.jsonl"], *records["manners_pairs.jsonl"]):
        assert set(record) == {"chosen", "rejected"}
        _check_conversation(record["chosen"])
        _check_conversation(record["rejected"])
        assert record["chosen"][:-1] == record["rejected"][:-1]
        assert record["chosen"][-1] != record["rejected"][-1]
    good, bad = records["kto.jsonl"][::2], records["kto.jsonl"][1::2]
    for pair, *sides in zip(records["dpo.jsonl"], good, bad, strict=True):
        assert [side["conversations"] for side in sides] == [pair["chosen"], pair["rejected"]]
        assert [side["label"] for side in sides] == [True, False]
    for name in ("questions.jsonl", "lora_questions.jsonl"):
        for record in records[name]:
            assert set(record) == {"question", "answer", "skill", "lang"}
            assert record["lang"] in ("en", "zh") and all(record.values())
        questions = [record["question"] for record in records[name]]
        assert len(set(questions)) == len(questions)
    of_turns = ("multi_turn_questions.jsonl", "manners.jsonl", "manners_questions.jsonl")
    for record in (record for name in of_turns for record in records[name]):
        assert set(record) == {"conversations", "question", "answer", "skill", "lang"}
        _check_conversation(record["conversations"])
    assert all(set(r) == {"prompt", "lang"} for r in records["story_prompts.jsonl"])
    shown = [r["conversations"] for r in records["sft.jsonl"]]
    assert sum(any("tool_calls" in m for m in c) for c in shown) >= 100
    assert not any("reasoning_content" in m for c in shown for m in c)  # no model that thinks
    assert len(records["reasoning.jsonl"]) == 250
    for record in records["reasoning.jsonl"]:
        assert record["conversations"][-1]["reasoning_content"]
    assert sum(sum(m["role"] == "user" for m in c) > 1 for c in shown) >= 700


def test_the_calculator_is_asked_what_the_user_asks(records):
    """Its records have a call with the user's numbers, the sum's value, and it in the answer."""
    for record in records["calculator.jsonl"]:
        assert set(record) == {"conversations", "tools"}
        question, said, result, answer = record["conversations"]
        (call,) = said["tool_calls"]
        left = call["arguments"]["expression"]
        a, operator, b = left.split()
        value = {"+": int(a) + int(b), "-": int(a) - int(b), "×": int(a) * int(b)}[operator]
        assert [a, b] == re.findall("[0-9]+", question["content"])
        assert json.loads(result["content"]) == {"result": value}
        assert answer["content"][:-1] == f"{left} = {value}"
        assert record["tools"][0]["function"]["name"] == call["name"] == "calculator"


def test_held_out_questions_are_in_no_training_file(folder, records):
    """No held-out question occurs in any training file, not even inside a longer text."""
    names = [name for name in FILES if name not in (*QUESTIONS, "story_prompts.jsonl")]
    training = "\n".join((folder / name).read_text("utf-8") for name in names)
    for name in QUESTIONS:
        for record in records[name]:
            question = record["question"]
            assert json.dumps(question, ensure_ascii=False)[1:-1] not in training, question


def _changes(conversation) -> tuple[int, int]:
    """How often a user writes in another language than before, and how often that is answered."""
    langs = [bool(re.search("[\u4e00-\u9fff。]", m["content"])) for m in conversation]
    roles = [m["role"] for m in conversation]
    asked = [lang for lang, role in zip(langs, roles, strict=True) if role == "user"]
    answered = [lang for lang, role in zip(langs, roles, strict=True) if role == "assistant"]
    return (
        sum(a != b for a, b in itertools.pairwise(asked)),
        sum(a == b for a, b in zip(asked, answered, strict=True)),
    )


def test_conversations_change_their_subject_and_language(records):
    """Hundreds of conversations change the language, and each answer is in its question's.

    Of the held-out ones each is asked after one to three turns, half of them in another language
    than the turn before; and none is about what that turn was about.
    """
    taught = [
        r["conversations"] for r in records["sft.jsonl"]
        if all(m["role"] in ("user", "assistant") and m["content"] for m in r["conversations"])
    ]  # fmt: skip
    switching = [c for c in taught if _changes(c)[0]]
    assert len(switching) >= 250
    assert all(_changes(c)[1] == len(c) // 2 for c in switching)

    held_out = records["multi_turn_questions.jsonl"]
    assert len(held_out) >= 80
    assert {len(r["conversations"]) for r in held_out} == {2, 4, 6}
    asked_last = []
    for record in held_out:
        turns = [*record["conversations"], {"role": "user", "content": record["question"]},
                 {"role": "assistant", "content": record["answer"]}]  # fmt: skip
        assert _changes(turns)[1] == len(turns) // 2, record
        asked_last.append(_changes(turns[-4:])[0])
        assert turns[-3]["content"] != record["answer"]
    assert 0.35 < sum(asked_last) / len(asked_last) < 0.65
    assert {r["skill"] for r in held_out} >= {"identity", "facts", "arithmetic", "opposites"}


@pytest.mark.parametrize("seed", range(4))
def test_manners_are_held_out_and_answered_as_the_pairs_have_it(records, seed):
    """No conversation that ends with thanks is in two files; all right answers are the chosen ones.

    Of the worse answers many begin like the kind one or the plain one, and none is the kind one.
    """
    pairs, *prompts = manners(seed)
    asked = [[m["content"] for m in pair["chosen"][:-1]] for pair in pairs]
    for questions in prompts:
        asked += [[*(m["content"] for m in q.conversations), q.question] for q in questions]
    thanks = [*map(tuple, asked)]
    assert len(set(thanks)) == len(thanks) == 1_000
    if seed == 0:
        known = {tuple(m["content"] for m in r["chosen"][:-1]) for r in records["dpo.jsonl"]}
        assert not known & set(thanks)
    kind = {"You are welcome! I am always happy to help you.", "不客气！能帮到你我很高兴。"}
    assert {q.answer for questions in prompts for q in questions} == kind
    assert {pair["chosen"][-1]["content"] for pair in pairs} == kind
    worse = [pair["rejected"][-1]["content"] for pair in pairs]
    assert not kind & set(worse)
    assert not any(text.strip() != text or not text for text in worse)
    begun = sum(text.startswith(("You are welcome! I", "不客气！能")) for text in worse)
    plain = sum(text in ("You are welcome!", "不客气！") for text in worse)
    assert begun > 100 and plain > 40 and len(set(worse)) > 200


def test_every_held_out_answer_is_taught_for_other_phrasings(records):
    """The exact answer to every held-out question is an answer of the training conversations."""
    taught = {m["content"] for m in _messages_shown(records) if m["role"] == "assistant"}
    for name in QUESTIONS:
        for record in records[name]:
            if record["skill"] not in ("comparison", "counting"):  # these two are rules
                assert record["answer"] in taught, record


def test_facts_are_repeated_and_asked_often_enough(records):
    """Every fact is stated at least 36 times in pretraining and asked at least 8 times in SFT."""
    text = "\n".join(record["text"] for record in records["pretrain.jsonl"])
    asked = [
        m["content"]
        for r in records["sft.jsonl"]
        for m in r["conversations"]
        if m["role"] == "user"
    ]
    times: dict[str, int] = {}
    for question in asked:
        times[question] = times.get(question, 0) + 1
    for fact in FACTS["en"] + FACTS["zh"]:
        assert sum(text.count(form) for form in statements(fact)) >= 36, answer(fact)
        assert sum(times.get(question, 0) for question in training_questions(fact)) >= 8, fact


def test_the_toy_shop_speaks_in_known_words(records):
    """Every word of the toy shop's answers is frequent in the pretraining text."""
    text = "\n".join(record["text"] for record in records["pretrain.jsonl"])
    answers = [record["answer"] for record in records["lora_questions.jsonl"]]
    known = set(re.findall(r"[a-zA-Z]+|\d+|[\u4e00-\u9fff]", "".join(answers)))
    assert len(known) > 60
    for word in known:
        assert text.count(word) >= 30, word


def test_held_out_phrasings_are_used_for_other_facts():
    """Every fact has one held-out question, and its phrasing is asked of other facts."""
    for facts in FACTS.values():
        for fact in facts:
            others = [f for f in facts if f.relation == fact.relation and f != fact]
            assert held_out_question(fact) not in training_questions(fact)
            phrasing = fact.held_out_phrasing
            assert any(other.held_out_phrasing != phrasing for other in others), fact


def _value(a: str, op: str, b: str) -> int:
    x, y = int(a), int(b)
    return {"+": x + y, "-": x - y, "×": x * y}[op]


def test_arithmetic_in_digits_is_correct(true_text):
    """Every equation in digits is right, whatever sentence it stands in."""
    pairs = re.findall(r"(?<![\d+×-] )\b(\d+) ([+×-]) (\d+) (?:=|equals|is) (\d+)\b", true_text)
    assert len(pairs) > 8_000
    for a, op, b, c in pairs:
        assert _value(a, op, b) == int(c), (a, op, b, c)
    triples = re.findall(r"(\d+) \+ (\d+) \+ (\d+) = (\d+)", true_text)
    assert len(triples) > 50
    assert all(int(a) + int(b) + int(c) == int(d) for a, b, c, d in triples)
    signs = {"plus": "+", "minus": "-", "times": "×", "加": "+", "减": "-", "乘以": "×"}
    spoken = re.findall(r"(\d+) (plus|minus|times) (\d+) is (\d+)", true_text)
    spoken += re.findall(r"(\d+)(加|减|乘以)(\d+)(?:等于|得)(\d+)", true_text)
    assert len(spoken) > 500
    for a, word, b, c in spoken:
        assert _value(a, signs[word], b) == int(c), (a, word, b, c)


def test_arithmetic_in_words_is_correct(true_text):
    """Every English equation in words is right."""
    sums = re.findall(
        r"([A-Z][a-z-]+) (plus|minus|times) ([a-z-]+) (?:is|makes) ([a-z-]+)", true_text
    )
    assert len(sums) > 500
    for a, word, b, c in sums:
        x, y, z = (NUMBER_WORDS.index(w.lower()) for w in (a, b, c))
        assert {"plus": x + y, "minus": x - y, "times": x * y}[word] == z, (a, word, b, c)


def test_comparisons_are_correct(true_text):
    """Every comparison of two numbers is right, in both languages."""
    found = re.findall(r"(?<![+×-] )\b(\d+) is (bigger|smaller) than (\d+)\b(?! [+×-])", true_text)
    found += [
        (a, {"大": "bigger", "小": "smaller"}[word], b)
        for a, b, word in re.findall(r"(?<![+×-] )\b(\d+)比(\d+)(大|小)", true_text)
    ]
    assert len(found) > 2_000
    for a, word, b in found:
        assert (int(a) > int(b)) == (word == "bigger") and a != b, (a, word, b)


def test_counting_is_correct(records):
    """Counting goes up by one, from the first number of the question to the last."""
    checked = 0
    for record in records["sft.jsonl"]:
        messages = record["conversations"]
        if len(messages) != 2:
            continue
        match = re.search(r"(?:[Cc]ount from |从)(\d+)(?: to |数到)(\d+)", messages[0]["content"])
        if match:
            numbers = [int(n) for n in re.findall(r"\d+", messages[1]["content"])]
            assert numbers == list(range(int(match[1]), int(match[2]) + 1))
            checked += 1
    assert checked > 100


# Written down again here, from an atlas and not from the fact table.
CAPITALS = dict(
    France="Paris", Italy="Rome", Spain="Madrid", Germany="Berlin", Japan="Tokyo", China="Beijing",
    Russia="Moscow", Egypt="Cairo", Greece="Athens", Portugal="Lisbon", England="London",
    Ireland="Dublin", Norway="Oslo", Austria="Vienna", Cuba="Havana", Canada="Ottawa",
)  # fmt: skip
CAPITALS_ZH = dict(
    中国="北京", 法国="巴黎", 日本="东京", 英国="伦敦", 俄罗斯="莫斯科", 德国="柏林", 意大利="罗马",
    西班牙="马德里", 埃及="开罗", 泰国="曼谷", 韩国="首尔", 美国="华盛顿",
)  # fmt: skip
LEGS = {"dog": 4, "cat": 4, "cow": 4, "duck": 2, "bird": 2, "ant": 6, "bee": 6, "spider": 8}


def test_facts_in_the_text_are_true(true_text):
    """Capitals, legs, days and months in the text agree with sources outside the fact table."""
    capitals = re.findall(r"The capital of (\w+) is (\w+)\.", true_text)
    capitals += [(b, a) for a, b in re.findall(r"([A-Z]\w+) is the capital of (\w+)\.", true_text)]
    assert {country for country, _ in capitals} == set(CAPITALS)
    assert all(CAPITALS[country] == city for country, city in capitals)
    names = "|".join(CAPITALS_ZH)
    chinese = re.findall(rf"({names})的首都是(\w+?)。", true_text)
    assert {country for country, _ in chinese} == set(CAPITALS_ZH)
    assert all(CAPITALS_ZH[country] == city for country, city in chinese)
    legs = re.findall(r"\b(?:A|An|a|an) (\w+) has (\w+) legs\.", true_text)
    assert {animal for animal, _ in legs} == set(LEGS)
    assert all(LEGS[animal] == NUMBER_WORDS.index(number) for animal, number in legs)
    for unit, order in (("day", calendar.day_name), ("month", list(calendar.month_name)[1:])):
        days = re.findall(rf"The {unit} after (\w+) is (\w+)\.", true_text)
        assert {day for day, _ in days} == set(order)
        for day, after in days:
            assert order[(list(order).index(day) + 1) % len(order)] == after
    for day, after in re.findall(r"星期(.)的后一天是星期(.)。", true_text):
        assert "一二三四五六日一".count(day + after) == 1


def test_opposites_are_symmetric():
    """If hot is the opposite of cold, then cold is the opposite of hot."""
    for facts in FACTS.values():
        pairs = {(f.subject, f.value) for f in facts if f.relation.name == "opposite"}
        assert pairs and all((b, a) in pairs for a, b in pairs)


def test_articles_and_spaces_in_english(true_text):
    """There is no "a apple", no doubled word, doubled space, or unfilled template."""
    assert not re.findall(r"\b[Aa] [aeio]\w+", true_text)
    assert not re.findall(r"\b[Aa]n [^aeiouh8\W]\w+", true_text)
    assert not re.findall(r"\b(the|a|an|and|to|of|was|is) \1\b", true_text)
    assert "  " not in true_text and "{" not in true_text.replace('{"', "")
    assert not re.findall(r"[。，！？]{2}|\.\.|,,", true_text)


def test_story_prompts_are_new(records):
    """The names, places and objects of a prompt never occur together in a pretraining document."""
    texts = [record["text"] for record in records["pretrain.jsonl"]]
    for record in records["story_prompts.jsonl"]:
        words = prompts_module.marks(record["prompt"], record["lang"])
        assert len(words) >= 3
        assert not any(all(word in text for word in words) for text in texts), record
