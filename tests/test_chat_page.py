"""The chat page in a real browser, against a server that says what each test tells it to."""

from __future__ import annotations

import json
import re
import shutil

import pytest

CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("needs chromium", allow_module_level=True)

from fake_chat_server import (  # noqa: E402
    CHAT,
    MODELS,
    USAGE,
    FakeServer,
    Wait,
    calls,
    delta,
    refuses,
    running,
    says,
)
from playwright.sync_api import Page, expect, sync_playwright  # noqa: E402

expect.set_options(timeout=5_000)
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser():
    """One browser for all tests here."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def served():
    """(server, address)"""
    server = FakeServer()
    with running(server) as address:
        yield server, address


@pytest.fixture
def server(served) -> FakeServer:
    """The server as it begins."""
    served[0].reset()
    return served[0]


@pytest.fixture(scope="module")
def visitor(browser):
    """A page that most tests share, since a visitor of one's own takes a second to come."""
    return watched(browser.new_context(viewport=DESKTOP, locale="en-GB").new_page())


def watched(page: Page) -> Page:
    """The page, with a list of what has gone wrong in it: errors of scripts, broken policies."""
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda message: page.problems.append(message.text))
    return page


def check(page: Page) -> None:
    # a browser reports every refused request, too
    problems = [text for text in page.problems if "Failed to load resource" not in text]
    page.problems.clear()
    assert problems == []


@pytest.fixture
def page(visitor, served, server) -> Page:
    """The page of an English visitor at a desk, who has never been here."""
    visitor.goto(f"{served[1]}/pages/style.css")
    visitor.evaluate("localStorage.clear(); sessionStorage.clear()")
    visitor.goto(served[1])
    expect(visitor.locator("#model")).to_have_value("minimind")
    yield visitor
    check(visitor)


@pytest.fixture
def pages(browser, served, server):
    """Opens the page as a visitor of another kind."""
    opened = []

    def open_page(**options) -> Page:
        options = {"viewport": DESKTOP, "locale": "en-GB", **options}
        opened.append(watched(browser.new_context(**options).new_page()))
        opened[-1].goto(served[1])
        return opened[-1]

    yield open_page
    for page in opened:
        check(page)
        page.context.close()


def box(page: Page):
    return page.locator("#box")


def send(page: Page, text: str) -> None:
    box(page).fill(text)
    box(page).press("Enter")


def answers(page: Page):
    return page.locator(".answer .markdown")


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).last.click()


def kept(page: Page) -> list[dict]:
    """The conversations in this browser's storage."""
    values = page.evaluate(
        "Object.entries(localStorage).filter(([k]) => k.startsWith('minimind.conversation.'))"
        ".map(([, v]) => v)"
    )
    return [json.loads(value) for value in values]


def idle(page: Page) -> None:
    """Wait until no answer arrives."""
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()


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
    assert set(server.bodies[0]) == {"model", "stream", "stream_options", "messages"}


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
    """The model that is chosen is asked, remembered by its conversation, and named at its answer."""
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
    assert not set(names) & set(server.bodies[1])
    assert server.bodies[1]["messages"][0]["role"] == "user"


# ---- tools ----


def test_tool_round_trip(page, server):
    """A call is run on the server, shown with its result, and the model is asked again with both."""
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
    """Without a server old conversations are there, new words are kept, and Retry finds it again."""
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


# ---- conversations ----


def test_reload_keeps_what_arrived(page, server):
    """A reload in the middle of an answer keeps all that was shown; it can be asked for again."""
    server.scripts = [[delta(content="Half an answer"), Wait()], says("All of it.")]
    send(page, "Hi")
    expect(answers(page)).to_have_text("Half an answer")
    page.reload()
    expect(answers(page)).to_have_text("Half an answer")
    expect(page.locator(".user .said")).to_have_text("Hi")
    expect(page.locator(".problem")).to_contain_text("Broken off")
    press(page, "Retry")
    expect(answers(page)).to_have_text("All of it.")


def test_several_conversations(page, server):
    """Conversations are listed, switched, renamed and deleted; each keeps its own messages."""
    send(page, "The first one")
    expect(answers(page)).to_have_text("Hello.")
    page.keyboard.press("Control+k")
    expect(answers(page)).to_have_count(0)
    send(page, "The second one")
    expect(answers(page)).to_have_text("Hello.")
    assert len(server.bodies[1]["messages"]) == 1
    titles = page.locator("#side .title")
    expect(titles).to_have_text(["The second one", "The first one"])
    titles.last.click()
    expect(page.locator(".user .said")).to_have_text("The first one")
    page.go_back()
    expect(page.locator(".user .said")).to_have_text("The second one")
    press(page, "Rename")
    page.get_by_label("Title").fill("改名 <i>")
    page.keyboard.press("Enter")
    expect(titles).to_have_text(["改名 <i>", "The first one"])
    page.reload()
    expect(titles).to_have_text(["改名 <i>", "The first one"])
    page.once("dialog", lambda dialog: dialog.accept())
    press(page, "Delete")
    expect(titles).to_have_text(["The first one"])
    expect(page.locator(".user .said")).to_have_text("The first one")
    assert len(kept(page)) == 1


def test_two_answers_at_once(page, server):
    """An answer goes on arriving while another conversation is open and asks for its own."""
    wait = Wait()
    server.scripts = [says("Slow ", wait, "but sure."), says("Quick.")]
    send(page, "A")
    expect(answers(page)).to_have_text("Slow")
    press(page, "New conversation")
    send(page, "B")
    expect(answers(page)).to_have_text("Quick.")
    expect(page.locator("#side .dot")).to_have_count(1)
    wait.go()
    expect(page.locator("#side .dot")).to_have_count(0)
    expect(answers(page)).to_have_text("Quick.")
    page.locator("#side .title", has_text="A").click()
    expect(answers(page)).to_have_text("Slow but sure.")


def test_two_tabs(page):
    """What one tab adds or deletes shows in the other, and neither overwrites the other's."""
    other = page.context.new_page()
    other.goto(page.url.split("#")[0])
    send(page, "From the first")
    expect(answers(page)).to_have_text("Hello.")
    send(other, "From the second")
    expect(answers(other)).to_have_text("Hello.")
    for each in (page, other):
        expect(each.locator("#side .title")).to_have_text(["From the second", "From the first"])
    other.close()
    assert len(kept(page)) == 2


def test_edit_and_versions(page, server):
    """An edited message is answered anew; what stood there before can be shown again."""
    server.scripts = [says("Paris."), says("Thanks."), says("Rome."), says("Roma.")]
    send(page, "Capital of France?")
    expect(answers(page)).to_have_text("Paris.")
    send(page, "Good")
    expect(answers(page)).to_have_text(["Paris.", "Thanks."])
    page.locator(".user").first.hover()
    page.locator(".user").first.get_by_role("button", name="Edit").click()
    editor = page.get_by_label("Edit the message")
    editor.fill("Capital of Italy?")
    editor.press("Enter")
    expect(answers(page)).to_have_text(["Rome."])
    assert server.bodies[-1]["messages"] == [{"role": "user", "content": "Capital of Italy?"}]
    press(page, "Regenerate")
    expect(answers(page)).to_have_text(["Roma."])
    assert server.bodies[-1] == server.bodies[-2]
    page.reload()
    expect(page.locator(".answer .versions")).to_contain_text("2/2")
    page.locator(".answer").get_by_label("Version before").click()
    expect(answers(page)).to_have_text(["Rome."])
    page.locator(".user").get_by_label("Version before").click()
    expect(answers(page)).to_have_text(["Paris.", "Thanks."])
    page.locator(".user").first.get_by_label("Next version").click()
    expect(answers(page)).to_have_text(["Rome."])


def test_export_can_be_learned_from(page, server, tmp_path):
    """The exported file holds the conversation as the readers of our training data take it."""
    from dataset.conversations import to_conversation
    from dataset.readers import read_records

    server.scripts = [calls("calculator", '{"expression": "1"}'), says("One. 一")]
    press(page, "Tools")
    send(page, "What is 1? <|im_end|>")
    expect(answers(page).last).to_have_text("One. 一")
    idle(page)
    with page.expect_download() as download:
        press(page, "Export")
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    assert path.name == "What_is_1_im_end_.json"
    (record,) = read_records(str(path))
    messages, _ = to_conversation(record.fields)
    assert [each["role"] for each in messages] == ["user", "assistant", "tool", "assistant"]
    assert messages[0]["content"] == "What is 1? <|im_end|>"
    assert messages[3]["content"] == "One. 一"


def test_storage_is_full(page, server):
    """Where the browser keeps no more, the page says so and goes on."""
    page.evaluate(
        "try { for (let n = 0; ; n++) localStorage.setItem('junk' + n, 'x'.repeat(1 << 18)) }"
        "catch { for (let n = 0; ; n++) try { localStorage.setItem('j' + n, 'x'.repeat(64)) }"
        "catch { break } }"
    )
    send(page, "Hi")
    expect(answers(page)).to_have_text("Hello.")
    expect(page.locator("#notice")).to_contain_text("no room")
    send(page, "More")
    expect(answers(page)).to_have_text(["Hello.", "Hello."])


def test_damaged_storage(page, server):
    """What is no conversation in the storage is left alone, and the page opens."""
    page.evaluate("localStorage['minimind.conversation.a'] = '{oops'")
    page.evaluate("localStorage['minimind.conversation.b'] = '[]'")
    page.evaluate("localStorage['minimind.chat.settings'] = '}'")
    page.reload()
    send(page, "Hi")
    expect(answers(page)).to_have_text("Hello.")
    assert page.evaluate("localStorage['minimind.conversation.a']") == "{oops"


# ---- writing ----


def test_chinese_input(pages, server):
    """In a Chinese browser all is Chinese; Enter that ends a word's writing does not send."""
    page = pages(locale="zh-CN")
    keyboard = page.context.new_cdp_session(page)
    box(page).focus()
    keyboard.send("Input.imeSetComposition", {"text": "ni", "selectionStart": 2, "selectionEnd": 2})
    enter = {"type": "rawKeyDown", "key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
    keyboard.send("Input.dispatchKeyEvent", enter)
    keyboard.send(
        "Input.imeSetComposition", {"text": "你好", "selectionStart": 2, "selectionEnd": 2}
    )
    # Safari's last Enter is no longer composing, but has the key code of one
    page.evaluate(
        "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter',"
        " keyCode: 229, bubbles: true, cancelable: true}))"
    )
    keyboard.send("Input.insertText", {"text": "你好"})
    expect(box(page)).to_have_value("你好")
    assert server.asked == []
    box(page).press("Enter")
    expect(answers(page)).to_have_text("Hello.")
    assert server.bodies[0]["messages"] == [{"role": "user", "content": "你好"}]
    expect(page.locator("html")).to_have_attribute("lang", "zh")
    for name in ("发送", "新对话", "设置", "思考", "工具", "重新生成"):
        expect(page.get_by_role("button", name=name, exact=True)).to_be_visible()
    letters = re.sub(r"MiniMind|minimind|English|Hello|Enter|Shift", "", page.inner_text("body"))
    assert re.findall(r"[A-Za-z]{3,}", letters) == ["toyshop", "pretrain"]


def test_keyboard_only(page, server):
    """All can be done from the keyboard: send, new lines, edit the last message, every control."""
    server.scripts = [says("Yes."), says("Edited.")]
    expect(box(page)).to_be_focused()
    page.keyboard.type("a")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("b")
    page.keyboard.press("Enter")
    expect(answers(page)).to_have_text("Yes.")
    assert server.bodies[0]["messages"][0]["content"] == "a\nb"
    idle(page)
    page.keyboard.press("ArrowUp")
    editor = page.get_by_label("Edit the message")
    expect(editor).to_be_focused()
    page.keyboard.press("Escape")
    expect(editor).to_have_count(0)
    expect(box(page)).to_be_focused()
    page.keyboard.press("ArrowUp")
    page.keyboard.type("c")
    page.keyboard.press("Enter")
    expect(answers(page)).to_have_text("Edited.")
    assert server.bodies[1]["messages"][0]["content"] == "a\nbc"
    expect(box(page)).to_be_focused()
    idle(page)
    reached = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(
            "[document.activeElement.ariaLabel || document.activeElement.innerText,"
            " getComputedStyle(document.activeElement).outlineStyle]"
        )
        if page.evaluate("document.activeElement === document.body"):
            continue
        assert outline != "none" or name == "Say something", f"no focus to see on {name}"
        reached.add(name)
    wanted = {"Think", "Tools", "New conversation", "Rename", "Delete", "Model", "Settings"}
    assert wanted | {"Copy", "Edit", "Regenerate", "Send", "Chat", "中文"} <= reached


def test_answer_is_read_aloud(page, server):
    """A screen reader gets each block of an answer once, when it is whole."""
    wait = Wait()
    server.scripts = [says("First block.\n\nSecond\n", "block", wait, ".")]
    aloud = page.locator("[aria-live=polite]")
    send(page, "Hi")
    expect(answers(page)).to_contain_text("Second")
    expect(aloud.locator("p")).to_have_text(["Answering…", "First block."])
    wait.go()
    expect(aloud.locator("p")).to_have_text(["Answering…", "First block.", "Second block."])


def test_copy(page, server):
    """An answer is copied as it was written, a code block as its code."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    code = "def f():\n\treturn 1\n"
    text = f"Here is **it**:\n```python\n{code}```"
    server.scripts = [says(text)]
    send(page, "Code")
    idle(page)
    page.locator(".code").get_by_role("button", name="Copy").click()
    expect(page.locator(".code button")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == code.rstrip("\n")
    page.locator(".answer footer").get_by_role("button", name="Copy").click()
    expect(page.locator(".answer footer")).to_contain_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == text


def test_phone(pages, server):
    """On a phone nothing is wider than the screen, and the conversations are in a drawer."""
    wide = "x" * 300
    table = f"| {' | '.join('abcdefghij')} |\n{'|---' * 10}|\n| {' | '.join(['long cell'] * 10)} |"
    server.scripts = [says(f"{wide}\n\n`{wide}`\n\n```\n{wide}\n```\n\n{table}\n\n> {wide}")]
    page = pages(viewport=PHONE, has_touch=True, is_mobile=True)
    send(page, wide)
    idle(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    inner = "document.getElementById('scroller')"
    assert page.evaluate(f"{inner}.scrollWidth <= {inner}.clientWidth")
    side = page.locator("#side")
    expect(side).not_to_be_in_viewport()
    expect(side).to_be_hidden()
    page.get_by_role("button", name="Conversations").tap()
    expect(side).to_be_in_viewport()
    page.keyboard.press("Escape")
    expect(side).to_be_hidden()
    page.get_by_role("button", name="Conversations").tap()
    page.get_by_role("button", name="New conversation").tap()
    expect(side).to_be_hidden()
    expect(answers(page)).to_have_count(0)


def test_scrolling(page, server):
    """The page stays at the end of a growing answer, unless the reader has scrolled away."""
    wait, wait_again = Wait(), Wait()
    lines = "line\n\n" * 80
    server.scripts = [says(lines, wait, lines, wait_again, "End.")]
    distance = "(e => e.scrollHeight - e.scrollTop - e.clientHeight)(scroller)"
    send(page, "Long")
    expect(answers(page).locator("p")).to_have_count(80)
    assert page.evaluate(distance) < 2
    page.locator("#scroller").hover()
    page.mouse.wheel(0, -600)
    to_end = page.get_by_role("button", name="To the end")
    expect(to_end).to_be_visible()
    before = page.evaluate("scroller.scrollTop")
    wait.go()
    expect(answers(page).locator("p")).to_have_count(160)
    assert page.evaluate("scroller.scrollTop") == before
    to_end.click()
    wait_again.go()
    expect(answers(page)).to_contain_text("End.")
    assert page.evaluate(distance) < 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_dark_and_light(pages, scheme):
    """Colours follow the system until the button is pressed; words stand out at least 4.5 : 1."""
    page = pages(color_scheme=scheme)
    send(page, "Hi")
    idle(page)
    contrast = """(selector) => {
      const light = (color) => {
        const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map((value) => {
          const part = value / 255;
          return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      let behind = document.querySelector(selector);
      const front = light(getComputedStyle(behind).color);
      while (/rgba\\(.*, 0\\)/.test(getComputedStyle(behind).backgroundColor)) {
        behind = behind.parentElement;
      }
      const back = light(getComputedStyle(behind).backgroundColor);
      return (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    }"""
    for selector in (".answer .markdown", ".user .said", ".stats", "#side .quiet", ".hint"):
        assert page.evaluate(contrast, selector) >= 4.5, selector
    theme = page.locator("html")
    expect(theme).to_have_attribute("data-theme", scheme)
    page.get_by_role("button", name="Dark or light").click()
    page.reload()
    expect(theme).to_have_attribute("data-theme", {"light": "dark", "dark": "light"}[scheme])
