"""Conversations with tool calls: a calculator, the weather, the time and a dictionary.

The system message carries the tools, the assistant calls one, a "tool" message brings the result,
and the assistant answers with it. `tools`, `tool_calls` and the result are JSON strings.
"""

import json
import random

from dataset.demo_text.choosing import below, chance, pick, pick_several, words
from dataset.demo_text.questions import QuestionDecks


def _tool(name: str, description: str, parameter: str) -> dict:
    """A description in as few words as a row of 256 tokens has room for, beside what is said."""
    properties = {parameter: {"type": "string"}}
    parameters = {"type": "object", "properties": properties, "required": [parameter]}
    return {"name": name, "description": description, "parameters": parameters}


TOOLS = {
    "calculator": _tool("calculator", "Calculate an expression, such as 12 + 30.", "expression"),
    "get_weather": _tool("get_weather", "Get the weather in a city.", "city"),
    "get_time": _tool("get_time", "Get the time in a city.", "city"),
    "dictionary": _tool("dictionary", "Look up a word.", "word"),
}

CITIES = {
    "en": words("Paris Rome Madrid Berlin Tokyo Beijing London Cairo Dublin Oslo Vienna Ottawa"),
    "zh": words("北京 巴黎 东京 伦敦 柏林 罗马 开罗 曼谷 首尔 上海 广州 成都"),
}
WEATHER = {
    "en": ("sunny", "rainy", "cloudy", "windy", "snowy"),
    "zh": ("晴天", "雨天", "阴天", "雪天"),
}
MEANINGS = {
    "en": (
        ("valley", "low land between hills"), ("orchard", "a garden of fruit trees"),
        ("harbour", "a safe place for ships"), ("author", "a person who writes books"),
        ("island", "land with water all around it"), ("dawn", "the time when the sun comes up"),
        ("cottage", "a small house in the country"), ("stream", "a small river"),
        ("crown", "a ring that a king wears"), ("recipe", "a plan for cooking something"),
    ),
    "zh": (
        ("果园", "种果树的地方"), ("港口", "停船的地方"), ("作家", "写书的人"),
        ("岛", "四面都是水的陆地"), ("黎明", "太阳快要升起的时候"), ("小溪", "很小的河"),
        ("医生", "给人看病的人"), ("工厂", "制造东西的地方"),
    ),
}  # fmt: skip


def _dumps(value) -> str:
    return json.dumps(value, ensure_ascii=False)


def _calculator(rng: random.Random, lang: str):
    a, b = 11 + below(rng, 80), 11 + below(rng, 80)
    op = pick(rng, "+-")
    if op == "-" and a < b:
        a, b = b, a
    expression, result = f"{a} {op} {b}", a + b if op == "+" else a - b
    forms = (
        ("What is {e}?", "Please calculate {e}.", "How much is {e}?")
        if lang == "en"
        else ("{e}等于几？", "请计算{e}。", "{e}是多少？")
    )
    end = "." if lang == "en" else "。"
    question = pick(rng, forms).format(e=expression)
    return question, {"expression": expression}, {"result": result}, f"{expression} = {result}{end}"


def _weather(rng: random.Random, lang: str):
    city, sky = pick(rng, CITIES[lang]), pick(rng, WEATHER[lang])
    degrees = below(rng, 3) if sky in ("snowy", "雪天") else 5 + below(rng, 25)
    result = {"weather": sky, "temperature": degrees}
    if lang == "en":
        forms = ("What is the weather in {c}?", "How is the weather in {c} today?")
        reply = f"It is {sky} in {city}, and the temperature is {degrees} degrees."
    else:
        forms = ("{c}的天气怎么样？", "今天{c}天气好吗？")
        reply = f"{city}今天是{sky}，气温{degrees}度。"
    return pick(rng, forms).format(c=city), {"city": city}, result, reply


def _time(rng: random.Random, lang: str):
    city, hour, minute = pick(rng, CITIES[lang]), below(rng, 24), below(rng, 60)
    clock = f"{hour:02d}:{minute:02d}"
    if lang == "en":
        forms = ("What time is it in {c}?", "Tell me the time in {c}.")
        reply = f"It is {clock} in {city}."
    else:
        forms = ("{c}现在几点？", "请告诉我{c}的时间。")
        reply = f"{city}现在是{clock}。"
    return pick(rng, forms).format(c=city), {"city": city}, {"time": clock}, reply


def _dictionary(rng: random.Random, lang: str):
    word, meaning = pick(rng, MEANINGS[lang])
    if lang == "en":
        forms = ('What does the word "{w}" mean?', 'Look up the word "{w}".')
        reply = f'The word "{word}" means {meaning}.'
    else:
        forms = ("“{w}”这个词是什么意思？", "请查一下“{w}”。")
        reply = f"“{word}”的意思是{meaning}。"
    return pick(rng, forms).format(w=word), {"word": word}, {"meaning": meaning}, reply


CALLS = {
    "calculator": _calculator,
    "get_weather": _weather,
    "get_time": _time,
    "dictionary": _dictionary,
}
SYSTEM = {
    "en": ("You are MiniMind. Use the tools when you need them.", "You can use these tools."),
    "zh": ("你是MiniMind。需要的时候请使用工具。", "你可以使用这些工具。"),
}


def tool_conversation(rng: random.Random, decks: QuestionDecks) -> list[dict]:
    """Return a conversation that calls a tool; one in five needs none and answers at once."""
    lang = decks.lang
    name = pick(rng, tuple(CALLS))
    others = pick_several(rng, [n for n in TOOLS if n != name], int(chance(rng, 0.25)))
    offered = [*others, name]
    offered = pick_several(rng, offered, len(offered))
    system = {
        "role": "system",
        "content": pick(rng, SYSTEM[lang]),
        "tools": _dumps([TOOLS[n] for n in offered]),
    }
    if chance(rng, 0.2):
        question, reply = decks.fact()
        return [
            system,
            {"role": "user", "content": question},
            {"role": "assistant", "content": reply},
        ]
    question, arguments, result, reply = CALLS[name](rng, lang)
    return [
        system,
        {"role": "user", "content": question},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": _dumps([{"name": name, "arguments": arguments}]),
        },
        {"role": "tool", "content": _dumps(result)},
        {"role": "assistant", "content": reply},
    ]
