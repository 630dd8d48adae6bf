"""The pages as serve_model.py gives them: a real model, a real run, the real security policy."""

import shutil
from pathlib import Path

import pytest
from chat_hands import idle, send
from playwright.sync_api import Page, Request, expect
from served import serving
from small_runs import make_inputs, run

from tools.calls import TOOLS

pytest_plugins = ["chat_browser"]

PATHS = ["/", "/runs", "/lab"]
DIRECTIVES = ("default-src 'self'", "object-src 'none'", "frame-ancestors 'none'")
# lengths of the last answer as they come, to be read by the test
WATCH = """() => {
  window.lengths = new Set();
  new MutationObserver(() => {
    const last = [...document.querySelectorAll(".answer .markdown")].at(-1);
    if (last) window.lengths.add(last.textContent.length);
  }).observe(document.body, { childList: true, subtree: true, characterData: true });
}"""
# the page's own requests, in which the model, whose weights are chance, may not draw the end
NEVER_ENDING = """() => {
  const fetch = window.fetch;
  window.fetch = (url, options) => fetch(url, options?.body ? { ...options, body: JSON.stringify({
    ...JSON.parse(options.body), logit_bias: { 0: -100, 1: -100, 2: -100 } }) } : options);
}"""


@pytest.fixture(scope="module")
def address(tmp_path_factory, tiny_tokenizer_dir):
    """A run of train_full_sft.py, served, in the folder of runs that the server shows."""
    if shutil.which("chromium") is None:
        pytest.skip("needs chromium")
    folder: Path = tmp_path_factory.mktemp("together")
    flags = make_inputs(folder, tiny_tokenizer_dir)["full_sft"]
    run("full_sft", folder / "out" / "small", *flags)
    flags = ["--runs", folder / "out", "--max_new_tokens", 200]
    with serving(folder / "out" / "small", *flags) as (address, _):
        yield address


def failure(request: Request) -> list[str]:
    """What to tell of a request that failed: nothing, if leaving the page has ended it."""
    ended = request.failure == "net::ERR_ABORTED"
    return [] if ended else [f"{request.url}: {request.failure}"]


@pytest.fixture
def visit(browser, address):
    """Opens a page of the server: no error, no warning, and no request that goes elsewhere."""
    contexts, problems, asked = [], [], []

    def opened(path: str) -> Page:
        contexts.append(browser.new_context(locale="en-GB"))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text))
        page.on("request", lambda request: asked.append(request.url))
        page.on("requestfailed", lambda request: problems.extend(failure(request)))
        answer = page.goto(address + path)
        policy = answer.headers["content-security-policy"]
        assert answer.status == 200 and all(directive in policy for directive in DIRECTIVES)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []
    assert asked and [url for url in asked if not url.startswith((f"{address}/", "data:"))] == []


@pytest.mark.parametrize("path", PATHS)
def test_the_pages_lead_to_each_other(visit, address, path):
    """Each has the bar with the three pages, in both languages, dark and light."""
    page = visit(path)
    for name, to in (("Chat", "/"), ("Training", "/runs"), ("Look inside", "/lab")):
        link = page.get_by_role("navigation", name="Pages").get_by_role("link", name=name)
        expect(link).to_have_attribute("href", to)
    before = page.locator("html").get_attribute("data-theme")
    page.get_by_role("button", name="Dark or light").click()
    expect(page.locator("html")).not_to_have_attribute("data-theme", before)
    page.get_by_role("button", name="中文").click()
    expect(page.locator("html")).to_have_attribute("lang", "zh")
    page.get_by_role("link", name="训练").click()
    expect(page).to_have_url(f"{address}/runs")


def test_a_conversation(visit, address):
    """The server's model and tools are there; an answer streams, and a reload shows it again."""
    page = visit("/")
    expect(page.locator("#model")).to_have_value("small")
    expect(page.get_by_role("button", name="Tools")).to_be_visible()
    told = page.evaluate("fetch('/tools').then((answer) => answer.json())")
    assert set(TOOLS) == {tool["function"]["name"] for tool in told["tools"]}
    page.evaluate(WATCH)
    page.evaluate(NEVER_ENDING)
    with page.expect_response("**/v1/chat/completions") as answer:
        send(page, "从前 <b>有</b> a cat <|im_end|>")
    assert answer.value.status == 200
    assert answer.value.headers["content-type"].startswith("text/event-stream")
    idle(page)
    expect(page.locator(".answer .stats")).to_contain_text("200 tokens")
    lengths = page.evaluate("[...window.lengths]")
    assert len(lengths) >= 3 and lengths == sorted(lengths), "the answer came at once"
    text = page.locator(".answer .markdown").inner_text()
    page.reload()
    expect(page.get_by_text("从前 <b>有</b> a cat <|im_end|>").last).to_be_visible()
    assert page.locator(".answer .markdown").inner_text() == text


def test_the_run_that_made_the_model(visit):
    """/runs lists it as finished, and draws its curves from the files that training wrote."""
    page = visit("/runs")
    expect(page.locator("#list")).to_contain_text("small")
    expect(page.locator("#list")).to_contain_text("finished")
    expect(page.locator("#charts canvas, #charts svg").first).to_be_visible()
    expect(page.locator("#charts")).to_contain_text("Loss")
    expect(page.locator("#flags")).to_contain_text("max_steps")


def test_a_look_inside_it(visit):
    """/lab colours a text by the served model's surprise."""
    page = visit("/lab")
    page.fill("#text", "The cat liked the 小猫.")
    page.click("button[type=submit]")
    # the page looks at its example first
    expect(page.locator(".token").nth(2)).to_have_text("·cat")
    shown = "".join(page.locator(".token").all_inner_texts())
    assert shown.startswith("<|endoftext|>The·cat·liked·the·")
    expect(page.locator(".facts")).to_contain_text("nats")
