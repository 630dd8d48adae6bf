"""Fixtures of the chat page's tests: a browser, visitors, and a server that does as it is told."""

from __future__ import annotations

import shutil

import pytest
from fake_chat_server import FakeServer, running
from playwright.sync_api import Page, expect, sync_playwright

expect.set_options(timeout=10_000)
DESKTOP = {"width": 1280, "height": 800}


@pytest.fixture(scope="module")
def browser():
    """One browser for all tests here."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
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
