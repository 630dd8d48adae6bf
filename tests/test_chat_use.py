"""The chat page in a real browser: conversations, the keyboard, Chinese, phones, dark and light."""

from __future__ import annotations

import re

import pytest
from chat_hands import answers, box, idle, kept, press, send
from fake_chat_server import Wait, calls, delta, says
from playwright.sync_api import expect

pytest_plugins = ["chat_browser"]
PHONE = {"width": 390, "height": 844}


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
    written = {"text": "ni", "selectionStart": 2, "selectionEnd": 2}
    keyboard.send("Input.imeSetComposition", written)
    enter = {"type": "rawKeyDown", "key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
    keyboard.send("Input.dispatchKeyEvent", enter)
    keyboard.send("Input.imeSetComposition", {**written, "text": "你好"})
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
