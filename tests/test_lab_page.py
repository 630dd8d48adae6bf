"""The page /lab in a real browser shows what the model said, to every eye, finger and key."""

import itertools
import json
import math
import re
import shutil

import pytest
import torch
from lab_server import Entry, make_app, serving
from test_lab_routes import tiny_model

from dataset.chat import NO_THINKING
from dataset.tokenizer import load_tokenizer
from model.inside import look_inside

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
TEXT = "The cat liked the moon.\n<b>小猫</b> & 鼠 <|im_end|>"
MARKS = str.maketrans({"·": " ", "↵": "\n"})


@pytest.fixture(scope="module")
def models(tiny_tokenizer_dir):
    """A dense base model; one with experts that chats."""
    base, chat = load_tokenizer(tiny_tokenizer_dir), load_tokenizer(tiny_tokenizer_dir)
    chat.chat_template = NO_THINKING
    return {"base": Entry(tiny_model(), base), "chat": Entry(tiny_model(use_moe=True), chat)}


@pytest.fixture(scope="module")
def address(models):
    with serving(make_app(models, longest=200)) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, address):
    """open_page(fragment, **options of a browser context) → a page; it must not log an error."""
    contexts, problems = [], []

    def opened(fragment: str = "", ready: str = ".token", **options):
        options = {"viewport": {"width": 1280, "height": 800}, "locale": "en-US"} | options
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        page.goto(f"{address}/lab{fragment}")
        page.wait_for_selector(ready)
        return page

    yield opened
    for context in contexts:
        context.close()
    refused = "the server responded with a status of 503"
    assert [text for text in problems if refused not in text] == []


def look_at(page, text: str):
    page.fill("#text", text)
    page.click("button[type=submit]")
    page.wait_for_selector("main[aria-busy=false]")


def looked_into(models, name: str, text: str, **options):
    """The ids of a text, and what model/inside.py says of them."""
    entry = models[name]
    ids = [entry.tokenizer.eos_id, *entry.tokenizer.encode_text(text)]
    return ids, look_inside(entry.model, ids, **options)


def shares(page) -> list[str]:
    return page.locator(".token:not(.coming)").evaluate_all(
        "tokens => tokens.map(token => token.dataset.share)"
    )


def chosen(page) -> int:
    return int(page.get_attribute(".token[aria-selected=true]", "data-place"))


@pytest.mark.parametrize(("locale", "word"), [("en-US", "Once upon a time"), ("zh-CN", "从前")])
def test_the_page_opens_with_an_example_in_the_readers_language(open_page, locale, word):
    """Nothing needs to be typed or known: a text stands there, coloured, and a token is chosen."""
    page = open_page(locale=locale)
    assert page.input_value("#text").startswith(word)
    assert len(set(shares(page))) > 5
    assert page.locator(".token[aria-selected=true]").count() == 1
    assert page.locator(".view.surprise .bars li").count() >= 10
    first = page.input_value("#text")
    page.click("#example")
    page.wait_for_selector("main[aria-busy=false]")
    assert page.input_value("#text") != first


def test_a_text_is_coloured_by_the_models_surprise(open_page, models):
    """Each token's share of the scale is √(nats / 10), from the model run by hand; so are sums."""
    page = open_page()
    look_at(page, TEXT)
    _, inside = looked_into(models, "base", TEXT)
    nats = inside.reading.surprise.tolist()
    expected = ["none"] + [f"{math.sqrt(min(cost, 10) / 10):.2f}" for cost in nats]
    differences = [a for a, b in zip(shares(page), expected) if a != b and "none" in (a, b)]
    assert differences == [] and len(shares(page)) == len(expected)
    for a, b in zip(shares(page)[1:], expected[1:]):
        assert abs(float(a) - float(b)) < 0.011
    facts = page.inner_text(".facts")
    assert f"{sum(nats) / len(nats):.2f} nats per token" in facts
    bits = sum(nats) / math.log(2) / len(TEXT.encode())
    assert f"{bits:.3f} bits per byte" in facts


def test_text_is_shown_as_text_with_its_white_space(open_page, models):
    """HTML and control tokens in a text are letters; spaces, line ends and bytes can be seen."""
    page = open_page()
    look_at(page, TEXT)
    pieces = page.locator(".token:not(.coming)").all_inner_texts()
    ids, _ = looked_into(models, "base", TEXT)
    assert pieces[0] == "<|endoftext|>" and len(pieces) == len(ids)
    assert "·cat" in "".join(pieces) and "↵" in "".join(pieces)
    data = b""
    for piece in pieces[1:]:
        hexadecimal = re.fullmatch("⟨([0-9A-F ]+)⟩", piece)
        data += bytes.fromhex(hexadecimal[1]) if hexadecimal else piece.translate(MARKS).encode()
    assert data.decode() == TEXT
    assert any(piece.startswith("⟨") for piece in pieces)
    assert page.locator(".tokens b").count() == 0
    assert page.locator(".tokens .control").count() == 1  # the one that began the document


def test_the_likeliest_tokens_stand_beside_the_chosen_one(open_page, models):
    """Ten, with the model's probabilities, and the one that came with its rank; keys move on."""
    page = open_page()
    look_at(page, TEXT)
    ids, inside = looked_into(models, "base", TEXT)
    page.focus(".tokens")
    page.keyboard.press("Home")
    assert chosen(page) == 0 and page.locator(".view.surprise .bars").count() == 0
    for place in (1, 2):
        page.keyboard.press("ArrowRight")
        assert chosen(page) == place
        rows = page.locator(".view.surprise .bars li").all_inner_texts()
        rank = inside.reading.rank[place - 1].item()
        assert len(rows) == (10 if rank <= 10 else 11)
        best = inside.reading.probs[place - 1, 0].item()
        assert abs(float(rows[0].split()[-1].rstrip("%")) - 100 * best) <= 0.51
        real = page.inner_text(".view.surprise .bars li.real")
        assert real.split()[0] == str(rank)
    page.keyboard.press("End")
    assert chosen(page) == len(ids)  # what would come next
    best = inside.reading.ids[-1, 0].item()
    piece = models["base"].tokenizer.bytes_of(best)
    shown = page.inner_text(".view.surprise .bars li .chip")
    assert shown in (f"⟨{piece.hex(' ').upper()}⟩", piece.decode("utf-8", "replace"))
    page.keyboard.press("ArrowUp")
    assert 0 < chosen(page) < len(ids)
    page.hover("#token-3")
    before = chosen(page)
    assert page.inner_text(".view.surprise h2 .chip") == page.inner_text("#token-3")
    page.hover("h1")
    assert page.inner_text(".view.surprise h2 .chip") == page.inner_text(f"#token-{before}")
    page.click("#token-3")
    assert chosen(page) == 3


def test_attention_is_the_chosen_heads(open_page, models):
    """Text and picture have the weights of the layer and head in the two fields."""
    page = open_page()
    look_at(page, TEXT)
    page.click("#tab-attention")
    page.wait_for_selector(".tokens.ramp-attention")
    for layer, head in ((0, 0), (1, 3)):
        page.locator(".attention select").nth(0).select_option(index=layer)
        page.locator(".attention select").nth(1).select_option(index=head)
        page.wait_for_selector(f"text=layer {layer + 1}, head {head + 1}")
        page.wait_for_selector("main[aria-busy=false]")
        ids, inside = looked_into(models, "base", TEXT, layer=layer, head=head)
        row = len(ids) - 2
        page.click(f"#token-{row}")
        weights = inside.attention[row, : row + 1].tolist()
        for share, weight in zip(shares(page), weights):
            assert abs(float(share) - math.sqrt(weight)) < 0.011
        assert shares(page)[row + 1 :] == ["none"]
        assert pixels_follow(page, inside.attention)


def pixels_follow(page, attention: torch.Tensor) -> bool:
    """Whether the picture is the darker, in the light theme, the larger a weight is."""
    T = len(attention)
    script = """(canvas, T) => {
      const scale = window.devicePixelRatio;
      const left = 78, size = (canvas.clientWidth - left - 1) / T;
      const top = canvas.clientHeight - 1 - size * T;
      const context = canvas.getContext("2d");
      const dark = (row, column) => {
        const x = (left + (column + 0.5) * size) * scale, y = (top + (row + 0.5) * size) * scale;
        const [r, g, b, a] = context.getImageData(x, y, 1, 1).data;
        return a === 0 ? null : 765 - r - g - b;
      };
      return Array.from({ length: T }, (_, row) =>
        Array.from({ length: T }, (_, column) => dark(row, column)));
    }"""
    dark = page.locator(".attention canvas").evaluate(script, T)
    seen = [(attention[i, j].item(), dark[i][j]) for i in range(T) for j in range(i + 1)]
    seen.sort()
    shades = [shade for _, shade in seen]
    assert len(set(shades)) > 20
    assert all(dark[i][j] is None for i in range(T - 1) for j in range(i + 2, T))
    return all(b >= a - 4 for a, b in itertools.pairwise(shades))


def test_arrow_keys_move_over_the_picture(open_page):
    """A cell says who looks at whom and how much; the text points at both."""
    page = open_page()
    look_at(page, TEXT)
    page.click("#tab-attention")
    page.wait_for_selector(".tokens.ramp-attention")
    page.wait_for_selector("#lab[aria-busy=false]")  # an answer to come would choose anew
    page.click("#token-5")
    page.focus(".attention canvas")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert "looks at" in page.inner_text(".aside .said")
    assert re.search(r"\d%$", page.inner_text(".aside .said"))
    assert page.locator(".token.pointed").count() == 2
    page.keyboard.press("ArrowDown")
    assert chosen(page) == 6


def test_the_lens_shows_each_layers_likeliest_token(open_page, models):
    """Rows are the embedding and the layers, columns the tokens; a tick where it is right."""
    page = open_page()
    look_at(page, TEXT)
    page.click("#tab-lens")
    page.wait_for_selector(".lens td")
    ids, inside = looked_into(models, "base", TEXT, lens=True)
    assert page.locator(".lens tbody tr").count() == 3
    for layer, reading in enumerate(inside.lens):
        for place in (1, 7, len(ids) - 1):
            cell = page.locator(f"td[data-layer='{layer}'][data-place='{place}']")
            best, p = reading.ids[place - 1, 0].item(), reading.probs[place - 1, 0].item()
            assert ("✓" in cell.inner_text()) == (best == ids[place])
            share = float(cell.evaluate("cell => cell.style.getPropertyValue('--share')"))
            assert abs(share - p) < 1e-4
    page.click("#token-4")
    page.focus(".lens-frame")
    page.keyboard.press("ArrowUp")
    cursor = page.locator(".lens .cursor")
    assert cursor.get_attribute("data-layer") == "1"
    page.keyboard.press("ArrowRight")
    assert chosen(page) == 5 and "layer 1" in page.inner_text(".lens .said")


def test_experts_are_shown_where_there_are_any(open_page, models):
    """A dense model has no such tab; with experts, stripes in the text and the load."""
    page = open_page()
    assert not page.is_visible("#tab-experts")
    page.select_option("#model", "chat")
    page.wait_for_selector("#tab-experts:visible")
    look_at(page, TEXT)
    page.click("#tab-experts")
    page.wait_for_selector(".tokens.striped")
    _, inside = looked_into(models, "chat", TEXT)
    for layer in (0, 1):
        page.locator(".experts select").select_option(index=layer)
        colours = page.locator(".token:not(.coming)").evaluate_all(
            "tokens => tokens.map(token => token.style.getPropertyValue('--stripe'))"
        )
        first = inside.experts[layer, :, 0].tolist()
        assert len(set(zip(colours, first))) == len(set(first)) == len(set(colours)) > 1
        loads = page.locator(".experts .bars .value").all_inner_texts()
        expected = inside.expert_load[layer].tolist()
        assert [float(text.rstrip("%")) for text in loads] == pytest.approx(
            [100 * load for load in expected], abs=0.51
        )


def test_a_link_brings_the_same_text_and_chat_back(open_page):
    """The address holds what is looked at, Chinese and HTML too; opening it shows the same."""
    page = open_page()
    look_at(page, TEXT)
    link = "#" + page.url.partition("#")[2]
    assert open_page(link).input_value("#text").replace("\r", "") == TEXT
    page.select_option("#model", "chat")
    page.check("input[value=chat]")
    page.fill("#user", "你好 & <b>")
    page.fill("#assistant", "The cat.")
    page.click("button[type=submit]")
    page.wait_for_selector("text=which training counts")
    assert page.locator(".tokens .control").count() == 4
    other = open_page("#" + page.url.partition("#")[2])
    assert other.input_value("#user") == "你好 & <b>"
    assert other.input_value("#assistant") == "The cat."
    assert other.locator(".token").all_inner_texts() == page.locator(".token").all_inner_texts()


def test_a_text_too_long_for_a_link_has_none(open_page):
    """The address stays short, and the page says how much of a text it does not look at."""
    page = open_page()
    look_at(page, "The cat. " * 2000)
    page.wait_for_selector("text=left out")
    assert "#" not in page.url and not page.is_visible("#link")
    assert page.locator(".token:not(.coming)").count() == 200


def test_a_refusal_is_told_and_what_was_shown_stays(open_page):
    """The server's own words, as an alert; the next look works again."""
    page = open_page()
    look_at(page, TEXT)
    before = page.locator(".token").all_inner_texts()
    error = json.dumps({"error": {"message": "several looks <b>are</b> waiting"}})
    page.route("**/lab/look", lambda route: route.fulfill(status=503, body=error))
    look_at(page, "Another text")
    assert page.inner_text("[role=alert]") == "several looks <b>are</b> waiting"
    assert page.locator(".token").all_inner_texts() == before
    page.unroute("**/lab/look")
    page.click("#tab-attention")  # of the text that is shown, not of the one that was refused
    page.wait_for_selector(".tokens.ramp-attention")
    assert page.locator(".token").all_inner_texts() == before
    assert not page.is_visible("[role=alert]")


def test_an_answer_that_comes_too_late_is_not_shown(open_page):
    """Two looks, the first one answered last: the second one's text stays."""
    page = open_page()
    held = []
    page.route("**/lab/look", lambda route: held.append(route))
    page.fill("#text", "first")
    page.click("button[type=submit]")
    page.fill("#text", "second")
    page.click("button[type=submit]")
    while len(held) < 2:
        page.wait_for_timeout(20)
    held[1].continue_()
    page.wait_for_selector("main[aria-busy=false]")
    held[0].continue_()
    page.wait_for_timeout(300)
    shown = "".join(page.locator(".token:not(.coming):not(.control)").all_inner_texts())
    assert shown == "second"


def test_letters_can_be_read_on_every_colour(open_page):
    """Contrast of at least 4.5 (WCAG AA) on each token and cell, in dark and in light."""
    script = """elements => elements.map(element => {
      const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
      const over = (...colours) => {
        for (const colour of colours) {
          paint.fillStyle = colour;
          paint.fillRect(0, 0, 1, 1);
        }
        return [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3).map(v => {
          v /= 255;
          return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
        });
      };
      const light = ([r, g, b]) => 0.2126 * r + 0.7152 * g + 0.0722 * b;
      const style = getComputedStyle(element);
      const ground = getComputedStyle(document.body).backgroundColor;
      const a = light(over(ground, style.backgroundColor));
      const b = light(over(style.color));
      return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    })"""
    for scheme in ("light", "dark"):
        page = open_page(color_scheme=scheme)
        look_at(page, TEXT)
        assert page.get_attribute("html", "data-theme") == scheme
        # the strongest colours, which a model that was taught nothing need not reach
        for tab, of in (("surprise", ".token"), ("attention", ".token"), ("lens", ".lens td")):
            page.click(f"#tab-{tab}")
            page.wait_for_selector(".lens td" if tab == "lens" else f".tokens.ramp-{tab}")
            page.wait_for_selector("main[aria-busy=false]")
            steps = "(all) => all.forEach((e, i) => e.style.setProperty('--share', i / 12))"
            page.locator(of).evaluate_all(steps)
            contrasts = page.locator(of).evaluate_all(script)
            assert min(contrasts) >= 4.5, (scheme, tab, min(contrasts))
            assert max(contrasts) > min(contrasts) + 1  # the colours do differ


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_a_phone_shows_all_of_it_without_scrolling_sideways(open_page, locale):
    """At 390 pixels no view is wider than the screen, and a tap keeps its answer in sight."""
    page = open_page(
        viewport={"width": 390, "height": 844}, locale=locale, has_touch=True, is_mobile=True
    )
    page.select_option("#model", "chat")
    page.wait_for_selector("#tab-experts:visible")
    page.tap("#token-6")
    box = page.locator(".panel").bounding_box()
    assert box["y"] < 844 - 40
    for tab in ("surprise", "attention", "lens", "experts"):
        page.click(f"#tab-{tab}")
        page.wait_for_selector("main[aria-busy=false]")
        page.wait_for_timeout(50)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, tab


def test_a_server_without_models_says_so(browser):
    """No form that could not work: an alert."""
    with serving(make_app({})) as address:
        page = browser.new_page()
        page.goto(f"{address}/lab")
        assert "no model" in page.wait_for_selector("[role=alert]").inner_text()
        page.close()
