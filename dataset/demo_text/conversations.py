"""The conversations of `sft.jsonl`: questions, follow-ups, stories, system prompts, tools.

And those of `reasoning.jsonl`. They are kept apart: one of them among the others would give the
model the chat template of models that think, with which each answer costs all turns before it.
"""

import random

from dataset.demo_text import arithmetic, articles, comparing, facts_en, facts_zh, identity
from dataset.demo_text.changing import changing_conversations
from dataset.demo_text.choosing import below, make_rng, pick, shuffled
from dataset.demo_text.facts import answer, training_questions
from dataset.demo_text.pretraining import story
from dataset.demo_text.questions import QuestionDecks, Turn
from dataset.demo_text.tools import tool_conversation
from dataset.demo_text.words_en import Story

# Conversations of each kind and language.
COUNTS = {
    "fact": {"en": 960, "zh": 540},
    "sum": {"en": 1300, "zh": 650},
    "comparison": {"en": 330, "zh": 240},
    "count": {"en": 190, "zh": 140},
    "identity": {"en": 90, "zh": 80},
    "follow_up": {"en": 120, "zh": 80},
    "chat": {"en": 60, "zh": 40},
    "story": {"en": 80, "zh": 40},
    "system": {"en": 160, "zh": 110},
    "tool": {"en": 84, "zh": 56},
}
REASONING = {"en": 150, "zh": 100}


def messages(turns: list[Turn], system: str = "") -> list[dict]:
    """Return turns as a list of messages, with a system message in front if one is given."""
    result = [{"role": "system", "content": system}] if system else []
    for question, reply in turns:
        result.append({"role": "user", "content": question})
        result.append({"role": "assistant", "content": reply})
    return result


STORY_REQUESTS = {
    "en": (
        "Tell me a story about {topic}.",
        "Write a short story about {topic}.",
        "Can you tell me a story about {topic}?",
        "I would like to hear a story about {topic}.",
    ),
    "zh": (
        "给我讲一个关于{topic}的故事。",
        "请写一个关于{topic}的小故事。",
        "我想听{topic}的故事。",
    ),
}


def story_request(rng: random.Random, lang: str, tale: Story) -> str:
    """Return a user's request for this story: by its topic, or by its hero's name."""
    subject = tale.topic if below(rng, 4) else tale.hero
    return pick(rng, STORY_REQUESTS[lang]).format(topic=subject)


# Facts that exist in both languages: English fact -> the same fact in Chinese.
COUNTRIES = {
    "France": "法国", "Italy": "意大利", "Spain": "西班牙", "Germany": "德国", "Japan": "日本",
    "China": "中国", "Russia": "俄罗斯", "Egypt": "埃及", "England": "英国",
}  # fmt: skip
DAYS = {
    "Monday": "星期一", "Tuesday": "星期二", "Wednesday": "星期三", "Thursday": "星期四",
    "Friday": "星期五", "Saturday": "星期六", "Sunday": "星期日",
}  # fmt: skip


def _translated() -> list[tuple]:
    chinese = {(f.relation.name, f.subject): f for f in facts_zh.FACTS}
    result = []
    for fact in facts_en.FACTS:
        table = {"capital": COUNTRIES, "next_day": DAYS}.get(fact.relation.name, {})
        if fact.subject in table:
            result.append((fact, chinese[fact.relation.name, table[fact.subject]]))
    return result


TRANSLATED = _translated()
IN_CHINESE = ("Answer in Chinese.", "Please answer in Chinese.", "请用中文回答。")
IN_ENGLISH = ("Answer in English.", "Please answer in English.", "请用英语回答。")
ONE_WORD = {
    "en": ("Answer with one word.", "Use only one word in your answer."),
    "zh": ("只用一个词回答。", "请用一个词回答问题。"),
}
ONE_WORD_RELATIONS = {
    "en": ("capital", "opposite", "colour", "legs", "next_day", "next_month", "sides"),
    "zh": ("capital", "opposite", "colour", "next_day", "next_season"),
}
PLAIN = {
    "en": ("You are MiniMind, a helpful assistant.", "You are a helpful assistant."),
    "zh": ("你是MiniMind，一个乐于助人的助手。", "你是一个乐于助人的助手。"),
}
WISH = {
    "en": ("End every answer with a good wish.", " Have a nice day!"),
    "zh": ("每次回答的最后都要说一句祝福。", "祝你开心！"),
}


def system_conversation(rng: random.Random, decks: QuestionDecks) -> list[dict]:
    """Return a conversation whose system prompt is obeyed."""
    lang = decks.lang
    kind = below(rng, 5)
    if kind == 0:
        return messages([decks.any()], pick(rng, PLAIN[lang]))
    if kind == 1:
        rule, wish = WISH[lang]
        question, reply = decks.any()
        return messages([(question, reply + wish)], rule)
    if kind == 2:
        names = ONE_WORD_RELATIONS[lang]
        fact = pick(rng, [f for f in articles.FACTS[lang] if f.relation.name in names])
        word = fact.value[0].upper() + fact.value[1:]
        turn = pick(rng, training_questions(fact)), word + ("." if lang == "en" else "。")
        return messages([turn], pick(rng, ONE_WORD[lang]))
    # The last two kinds ask in one language and answer in the other.
    other = "zh" if lang == "en" else "en"
    rule = pick(rng, IN_CHINESE if other == "zh" else IN_ENGLISH)
    if kind == 3:
        english, chinese = pick(rng, TRANSLATED)
        asked, told = (english, chinese) if lang == "en" else (chinese, english)
        return messages([(pick(rng, training_questions(asked)), answer(told))], rule)
    pair = pick(rng, comparing.PAIRS)
    i = below(rng, len(comparing.training_pairs(pair, lang)))
    question = comparing.training_pairs(pair, lang)[i][0]
    return messages([(question, comparing.training_pairs(pair, other)[i][1])], rule)


def chat(rng: random.Random, decks: QuestionDecks) -> list[dict]:
    """Return two to four turns: a greeting, one or two questions, and polite last words."""
    lang = decks.lang
    turns = []
    if below(rng, 2):
        turns.append(pick(rng, identity.GREETINGS[lang]))
    for _ in range(1 + below(rng, 2)):
        turns.append(decks.any())
    if below(rng, 2) or len(turns) == 1:
        turns.append(pick(rng, identity.FAREWELLS[lang]))
    return messages(turns)


def _two_step(rng: random.Random, lang: str) -> tuple[str, str, str]:
    a, b, c = 1 + below(rng, 6), 1 + below(rng, 6), 1 + below(rng, 6)
    first = a + b
    whole = f"{a} + {b} + {c}"
    if lang == "en":
        question = pick(rng, ("What is {w}?", "How much is {w}?", "Calculate {w}.")).format(w=whole)
        thought = f"First, {a} + {b} = {first}. Then, {first} + {c} = {first + c}."
        return question, thought, f"{whole} = {first + c}."
    question = pick(rng, ("{w}等于几？", "请计算{w}。", "{w}是多少？")).format(w=whole)
    thought = f"先算{a} + {b} = {first}。再算{first} + {c} = {first + c}。"
    return question, thought, f"{whole} = {first + c}。"


def _sum_against_number(rng: random.Random, lang: str) -> tuple[str, str, str]:
    a, b = 1 + below(rng, 5), 1 + below(rng, 5)
    c = 1 + below(rng, 10)
    if c == a + b:
        c += 1
    high, low = max(a + b, c), min(a + b, c)
    left = f"{a} + {b}"
    name = {a + b: left, c: str(c)}
    if lang == "en":
        return (
            f"Which is bigger, {left} or {c}?",
            f"{left} = {a + b}. {high} is bigger than {low}.",
            f"{name[high]} is bigger than {name[low]}.",
        )
    return (
        f"{left}和{c}，哪个大？",
        f"{left} = {a + b}。{high}比{low}大。",
        f"{name[high]}比{name[low]}大。",
    )


def _word_problem(rng: random.Random, lang: str) -> tuple[str, str, str]:
    equation = pick(rng, [q for q in arithmetic.EQUATIONS if q.op != "×"])
    if lang == "en":
        happens, question, reply = arithmetic.word_problem_en(rng, equation)
        verb = "add" if equation.op == "+" else "take away"
        return f"{happens} {question}", f"I have to {verb}. {equation.equation}.", reply
    happens, question, reply = arithmetic.word_problem_zh(rng, equation)
    verb = "加法" if equation.op == "+" else "减法"
    return happens + question, f"这里要用{verb}。{equation.equation}。", reply


def reasoning_conversation(rng: random.Random, lang: str) -> list[dict]:
    """Return a question that needs a step in between, with the step as `reasoning_content`."""
    make = pick(rng, (_two_step, _sum_against_number, _word_problem, _word_problem))
    question, thought, reply = make(rng, lang)
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "reasoning_content": thought, "content": reply},
    ]


def _conversation(kind: str, rng: random.Random, decks: QuestionDecks) -> list[dict]:
    lang = decks.lang
    if kind == "follow_up":
        turns = decks.fact_and_follow_ups(1 + below(rng, 2))
        return messages(turns)
    if kind == "chat":
        return chat(rng, decks)
    if kind == "story":
        tale = story(rng, lang)
        return messages([(story_request(rng, lang, tale), tale.text)])
    if kind == "system":
        return system_conversation(rng, decks)
    if kind == "tool":
        return tool_conversation(rng, decks)
    single = {
        "fact": decks.fact,
        "sum": decks.sum,
        "comparison": decks.comparison,
        "count": decks.count,
        "identity": decks.about_me,
    }
    return messages([single[kind]()])


def reasoning_conversations(seed: int) -> list[list[dict]]:
    """Return the conversations of `reasoning.jsonl`."""
    rng = make_rng(seed, "reasoning")
    result = []
    for lang, count in REASONING.items():
        result += [reasoning_conversation(rng, lang) for _ in range(count)]
    return shuffled(rng, result)


def sft_conversations(seed: int) -> list[list[dict]]:
    """Return the conversations of `sft.jsonl` in their final order."""
    result = []
    for lang in ("en", "zh"):
        rng = make_rng(seed, f"conversations {lang}")
        decks = QuestionDecks(rng, lang)
        for kind, counts in COUNTS.items():
            result += [_conversation(kind, rng, decks) for _ in range(counts[lang])]
    result += changing_conversations(seed)
    return shuffled(make_rng(seed, "order of conversations"), result)
