"""The chat page in a real browser: answers, models, settings, tools, and what goes wrong."""

from __future__ import annotations

import json
import re

import pytest
from chat_hands import answers, box, idle, kept, press, send
from fake_chat_server import MODELS, USAGE, Wait, calls, delta, refuses, running, says
from playwright.sync_api import expect

pytest_plugins = ["chat_browser"]


# ---- asking and answering ----


def test_what_is_sent_and_shown(page, server):
    """A message is sent as OpenAI's API has it; its answer, tokens and speed are shown."""
    server.scripts = [says("Hel", "lo", " there."), says("Again.")]
    send(page, "  Hi\nyou ")
    expect(answers(page)).to_have_text("Hello there.")
    assert server.asked == [
        (
            "/v1/chat/completions",
            {
                "model": "minimind",
                "stream": True,
                "stream_options": {"include_usage": True},
                "temperature": 0.7,
                "top_p": 0.9,
                "chat_template_kwargs": {"enable_thinking": False},
                "messages": [{"role": "user", "content": "  Hi\nyou "}],
            },
        )
    ]
    stats = page.locator(".answer .stats")
    expect(stats).to_contain_text(re.compile(r"^5 tokens · [\d.]+ tokens/s · prompt 1,234"))
    send(page, "And?")
    expect(answers(page)).to_have_text(["Hello there.", "Again."])
    roles = [(each["role"], each["content"]) for each in server.bodies[1]["messages"]]
    assert roles == [("user", "  Hi\nyou "), ("assistant", "Hello there."), ("user", "And?")]


def test_pieces_are_shown_as_they_come(page, server):
    """What has arrived is shown before the rest comes; nothing else can be sent meanwhile."""
    wait = Wait()
    server.scripts = [says("First ", wait, "second.")]
    send(page, "Go")
    expect(answers(page)).to_have_text("First")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    send(page, "too early")
    expect(box(page)).to_have_value("too early")
    wait.go()
    expect(answers(page)).to_have_text("First second.")
    idle(page)
    assert len(server.asked) == 1


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stop(page, server, how):
    """Stop and Esc end the request on the server, too; what has arrived stays and is sent on."""
    server.scripts = [[delta(content="One, two"), Wait()], says("Fine.")]
    send(page, "Count")
    expect(answers(page)).to_have_text("One, two")
    if how == "button":
        press(page, "Stop")
    else:
        page.keyboard.press("Escape")
    expect(page.locator(".problem")).to_have_text("Stopped.")
    assert server.left.wait(3), "the server was not told"
    send(page, "Go on")
    expect(answers(page).last).to_have_text("Fine.")
    assert server.bodies[1]["messages"][1] == {"role": "assistant", "content": "One, two"}


def test_length_is_told(page, server):
    """An answer that was cut off says so."""
    server.scripts = [says("Once upon a", finish="length")]
    send(page, "A story")
    expect(page.locator(".problem")).to_contain_text("Cut off")


def test_characters_cut_between_packets(page, server):
    """Chinese whose bytes arrive in two packets is whole."""
    raw = json.dumps(delta(content="你好，世界"), ensure_ascii=False)
    server.scripts = [[raw, delta("stop"), "[DONE]"]]
    server.packet_size = 7
    send(page, "说中文")
    expect(answers(page)).to_have_text("你好，世界")


def test_thinking_is_folded(page, server):
    """Thoughts are folded, apart from the answer, and asked for only where that is switched on."""
    wait = Wait()
    server.scripts = [
        [delta(reasoning_content="6 + 1 "), delta(reasoning_content="= 7."), wait, *says("Seven.")]
    ]
    press(page, "Think")
    send(page, "6 + 1?")
    summary = page.locator(".answer summary")
    expect(summary).to_have_text("Thinking…")
    thoughts = page.get_by_text("6 + 1 = 7.")
    expect(thoughts).to_be_hidden()
    summary.click()
    expect(thoughts).to_be_visible()
    wait.go()
    expect(answers(page)).to_have_text("Seven.")
    expect(summary).to_have_text("Thoughts")
    assert server.bodies[0]["chat_template_kwargs"] == {"enable_thinking": True}


def test_foreign_server(page, server):
    """Of a server that says nothing of its models and has no tools, nothing special is asked."""
    server.models, server.tools = [{"id": "other"}], []
    page.reload()
    expect(page.locator("#model")).to_have_value("other")
    expect(page.get_by_role("button", name="Tools")).to_be_hidden()
    send(page, "Hi")
    expect(answers(page)).to_have_text("Hello.")
    usual = {"model", "stream", "stream_options", "temperature", "top_p", "messages"}
    assert set(server.bodies[0]) == usual


def test_base_model(page, server):
    """A base model goes on with the whole text so far, and the page says what it is."""
    pieces = [{"choices": [{"index": 0, "text": text}]} for text in (" a *frog", "* and\n")]
    end = [{"choices": [], "usage": USAGE}, "[DONE]"]
    server.scripts = [pieces + end, [{"choices": [{"text": "more"}]}, *end]]
    page.locator("#model").select_option("pretrain")
    expect(page.get_by_text("does not answer questions")).to_be_visible()
    expect(page.get_by_role("button", name="Think")).to_be_hidden()
    send(page, "He saw")
    written = page.locator(".answer > .said")
    expect(written).to_have_text(" a *frog* and\n", use_inner_text=False)
    expect(page.locator(".answer em")).to_have_count(0)
    expect(page.get_by_role("button", name="Continue")).to_be_visible()
    box(page).press("Enter")
    expect(written.last).to_have_text("more")
    assert [path for path, _ in server.asked] == ["/v1/completions"] * 2
    assert [body["prompt"] for body in server.bodies] == ["He saw", "He saw a *frog* and\n"]
    assert "messages" not in server.bodies[0]


def test_switch_model(page, server):
    """The chosen model is asked, remembered by its conversation, and named at its answer."""
    page.locator("#model").select_option(label="toyshop (adapter)")
    send(page, "What is it?")
    expect(page.locator(".stats")).to_contain_text("toyshop")
    assert server.bodies[0]["model"] == "toyshop"
    assert "chat_template_kwargs" not in server.bodies[0], "it cannot think"
    page.reload()
    expect(page.locator("#model")).to_have_value("toyshop")
    server.models = MODELS[:1]
    page.reload()
    expect(page.locator("#model")).to_have_value("minimind")


def test_settings(page, server):
    """Settings that are set are sent as numbers, others not; a number out of range is not taken."""
    press(page, "Settings")
    page.get_by_label("System prompt").fill("Be kind.")
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Top p").fill("0.9")
    page.get_by_label("Top k").fill("40")
    page.get_by_label("Min p").fill("0.05")
    page.get_by_label("Repetition penalty").fill("1.1")
    page.get_by_label("Longest answer").fill("64")
    page.get_by_label("Seed").fill("7")
    page.get_by_label("Top p").fill("3")
    expect(page.get_by_label("Top p")).to_have_attribute("aria-invalid", "true")
    page.get_by_label("Top k").fill("")
    page.keyboard.press("Escape")
    send(page, "Hi")
    expect(answers(page)).to_have_text("Hello.")
    body = server.bodies[0]
    assert body["messages"][0] == {"role": "system", "content": "Be kind."}
    names = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed"]
    sent = {name: body[name] for name in names if name in body}
    assert sent == {
        "temperature": 0,
        "top_p": 0.9,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "max_tokens": 64,
        "seed": 7,
    }
    page.reload()
    press(page, "Settings")
    expect(page.get_by_label("Seed")).to_have_value("7")
    press(page, "Back to defaults")
    page.keyboard.press("Escape")
    send(page, "Hi")
    expect(answers(page)).to_have_count(2)
    assert set(names) & set(server.bodies[1]) == {"temperature", "top_p"}
    assert server.bodies[1]["messages"][0]["role"] == "user"


# ---- tools ----


def test_tool_round_trip(page, server):
    """A call is run on the server and shown; with its result the model is asked again."""
    arguments = '{"expression": "12*12"}'
    server.scripts = [calls("calculator", arguments), says("It is 144.")]
    press(page, "Tools")
    send(page, "What is 12*12?")
    expect(answers(page).last).to_have_text("It is 144.")
    call = page.locator(".call")
    expect(call).to_contain_text("calculator")
    expect(call).to_contain_text("expression: 12*12")
    expect(call).to_contain_text("144")
    assert server.asked[1] == ("/tools/calculator", {"arguments": {"expression": "12*12"}})
    first, second = server.bodies
    assert first["tools"] == second["tools"] == server.tools
    function = {"name": "calculator", "arguments": arguments}
    assert second["messages"][1:] == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "144"},
    ]
    page.reload()
    expect(page.locator(".call")).to_contain_text("144")


def test_tools_are_off(page, server):
    """Without the switch no tool is offered, and a call that comes nevertheless is not run."""
    server.scripts = [calls("calculator", '{"expression": "1"}'), says("Well.")]
    send(page, "1?")
    expect(page.locator(".call")).to_contain_text("not run")
    send(page, "So?")
    expect(answers(page).last).to_have_text("Well.")
    assert [path for path, _ in server.asked] == ["/v1/chat/completions"] * 2
    assert "tools" not in server.bodies[0]
    # a call without an answer would be no valid conversation
    assert server.bodies[1]["messages"][2]["content"] == "(not run)"


def test_bad_calls(page, server):
    """Arguments that are no JSON, a tool's error and unknown tools are told to the model."""
    server.scripts = [
        calls("calculator", "{oops"),
        calls("calculator", "{}"),
        calls("../v1/models", "{}"),
        says("I give up."),
    ]
    press(page, "Tools")
    send(page, "Try")
    expect(answers(page).last).to_have_text("I give up.")
    told = [each["content"] for each in server.bodies[-1]["messages"] if each["role"] == "tool"]
    assert [text.split(":")[0] for text in told] == [
        "the arguments are not JSON",
        "expression is missing (400)",
        "no such tool",
    ]
    assert [path for path, _ in server.asked if "tools" in path] == ["/tools/calculator"]


def test_rounds_end(page, server):
    """A model that calls tools for ever is asked eight times."""
    server.scripts = [calls("calculator", '{"expression": "1"}') for _ in range(20)]
    press(page, "Tools")
    send(page, "Loop")
    expect(page.locator(".problem:visible")).to_contain_text("8 rounds")
    idle(page)
    assert len(server.bodies) == 8


# ---- what goes wrong ----


def test_error_before_the_answer(page, server):
    """A refusal is shown in its place; Retry asks the same again and leaves nothing of it."""
    server.scripts = [refuses("Too many <b>requests</b>", 429), says("Now.")]
    send(page, "Hi")
    expect(page.locator(".problem")).to_contain_text("Too many <b>requests</b> (429)")
    page.reload()
    expect(page.locator(".problem")).to_contain_text("Too many")
    press(page, "Retry")
    expect(answers(page)).to_have_text("Now.")
    assert server.bodies[0] == server.bodies[1]
    expect(page.locator(".problem:visible")).to_have_count(0)
    expect(page.locator(".answer")).to_have_count(1)


@pytest.mark.parametrize("how", ["error object", "broken connection", "no [DONE]", "no JSON"])
def test_error_in_the_middle(page, server, how):
    """An answer that breaks off says why, and keeps what had arrived, over Retry, too."""
    error = {"error": {"message": "out of memory", "type": "server_error", "code": None}}
    ends = {"error object": [error], "broken connection": ["break"], "no JSON": ["{"]}
    server.scripts = [[delta(content="Half"), *ends.get(how, [])], says("Whole.")]
    send(page, "Hi")
    problem = page.locator(".problem.error")
    expect(problem).to_contain_text(
        {"error object": "out of memory", "no JSON": "does not understand"}.get(
            how, "connection ended"
        )
    )
    expect(answers(page)).to_have_text("Half")
    press(page, "Retry")
    expect(answers(page)).to_have_text("Whole.")
    press(page, "Version before")
    expect(answers(page)).to_have_text("Half")


def test_server_gone(browser, server):
    """Without a server all words are there, old and new, and Retry finds it when it is back."""
    context = browser.new_context(locale="en-GB")
    page = context.new_page()
    with running(server) as address:
        page.goto(address)
        send(page, "One")
        expect(answers(page)).to_have_text("Hello.")
    send(page, "Two")
    expect(page.locator(".problem.error")).to_contain_text("does not answer")
    assert [each["content"] for each in kept(page)[0]["messages"]] == ["One", "Hello.", "Two", ""]
    with running(server, int(address.rsplit(":", 1)[1])):
        press(page, "Retry")
        expect(answers(page)).to_have_text(["Hello.", "Hello."])
    context.close()


def test_key(page, server):
    """A server with a key: the page asks once, again if it was wrong, and keeps it in the tab."""
    server.key = "sesame"
    page.reload()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("The key").fill("wrong")
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("That was not the key")
    dialog.get_by_label("The key").fill("sesame")
    page.keyboard.press("Enter")
    expect(page.locator("#model")).to_have_value("minimind")
    send(page, "Hi")
    expect(answers(page)).to_have_text("Hello.")
    page.reload()
    expect(page.get_by_role("button", name="Tools")).to_be_visible()
    expect(dialog).to_have_count(0)
    everything = page.evaluate("JSON.stringify(localStorage)")
    assert "sesame" not in everything


def test_no_key(page, server):
    """Who has no key is told that the server refuses, and can try again."""
    server.key = "sesame"
    page.reload()
    press(page, "Cancel")
    expect(page.locator("#notice")).to_contain_text("Incorrect API key")
    press(page, "Retry")
    expect(page.get_by_role("dialog")).to_be_visible()
