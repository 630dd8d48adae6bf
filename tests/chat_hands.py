"""Hands and eyes of who uses the chat page."""

from __future__ import annotations

import json

from playwright.sync_api import Locator, Page, expect


def box(page: Page) -> Locator:
    return page.locator("#box")


def send(page: Page, text: str) -> None:
    box(page).fill(text)
    box(page).press("Enter")


def answers(page: Page) -> Locator:
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
