"""The chat page's Markdown, in a real browser: right, safe, and the same however it arrives."""

from __future__ import annotations

import random
import re
from html.parser import HTMLParser

import pytest

MarkdownIt = pytest.importorskip("markdown_it").MarkdownIt
pytest_plugins = ["chat_browser"]

ALLOWED = (
    "p h3 h4 h5 h6 ul ol li blockquote hr br strong em del code pre a table thead tbody tr th td "
    "div figure figcaption span button"
)
PIECES = (
    "a b *c* ** __ _ ~~ ` `` ``` ~~~ [ ] ( ) ](https://a.org) ![ < > <b> <script> <|im_end|> "
    "- + 1. 2) # ## | |--| --- \\ : https://a.org javascript:x 中文 。 & &lt; \t"
)
BREAKS = ["", "", " ", " ", "\n", "\n", "\n\n", "\n  ", "\n    ", "\n> "]

# What models write, most of it.
SAMPLES = [
    "One line\nand another.\n\nA new paragraph.",
    "# One\n## Two ##\n### Three\n#hash is text\n####### seven is text",
    "**bold** *it* __bold__ _it_ ***both*** ~~gone~~ `code` ``a ` b``",
    "*a **b** c* and **a *b* c**, 2 * 3 * 4, snake_case_name, a*b*c",
    "**not closed, *not this one, `nor this",
    r"\*plain\* and \`plain\` and \[plain\](x)",
    "- a\n- b\n  - c\n    - d\n- e",
    "* a\n* b\n\n1. one\n2. two\n3. three",
    "3. three\n4. four",
    "1. First:\n   ```python\n   x = 1\n   ```\n2. Second\n\n   a paragraph of it",
    "- a\n\n  more of a\n- b",
    "The list:\n- a\n- b\n\nThe end.",
    "In the year\n1984. It was cold.",
    "```python\ndef f():\n    return '<b>' # **no**\n```\nafter",
    "~~~\n```\n~~~",
    "```\nnever closed\n\nstill code",
    "> a quote\n> of *two* lines\n>\n> and a paragraph\n\nno quote",
    "> - a list\n> - in a quote\n> > deeper",
    "a\n\n---\n\nb\n\n***\n\nc",
    "| a | b | c |\n|:--|:-:|--:|\n| 1 | **2** | `3` |\n| x \\| y | | z |\n\nafter",
    "a | b\n--|--\n1 | 2",
    "no | table\nat all",
    "[a link](https://example.org/x) and [**bold** link](http://a.b/c_d_e 'no')",
    '[title](https://example.org "a title") [mail](mailto:a@b.org) <https://auto.org/x>',
    "[a [nested] one](https://example.org/a_(b))",
    "<script>alert(1)</script> <b>bold?</b> R&D <!-- no --> <|im_end|>",
    "中文**加粗**的字和`代码`，还有*斜体*。\n\n1. 第一\n2. 第二",
    "Term: `a*b*c`, then *x*",
    "a  \nb",
    "",
]


@pytest.fixture(scope="module")
def page(browser, served):
    """A page of the server's origin, with the renderer's functions under `window`."""
    page = browser.new_page(locale="en-GB")
    page.goto(f"{served[1]}/pages/style.css")
    page.evaluate(
        """async () => {
          const { MarkdownView } = await import("/pages/markdown.js");
          window.MarkdownView = MarkdownView;
          window.drawn = (text) => {
            const view = new MarkdownView();
            view.update(text);
            return view.root;
          };
        }"""
    )
    yield page
    page.close()


def html_of(page, text: str) -> str:
    return page.evaluate("(text) => window.drawn(text).innerHTML", text)


class Outline(HTMLParser):
    """HTML as nested names and texts, without what is a matter of taste."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.skipped = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        given = dict(attributes)
        if tag == "figcaption" or self.skipped:
            self.skipped += tag not in ("br", "hr")
        elif tag not in ("figure", "div"):
            kept = {name: given[name].rstrip("/") for name in ("href", "start") if name in given}
            side = given.get("class") or (given.get("style") or "").removeprefix("text-align:")
            if tag in ("th", "td") and side in ("center", "right"):
                kept["side"] = side
            self.parts.append(f"<{tag}{kept or ''}>")

    def handle_endtag(self, tag: str) -> None:
        if self.skipped:
            self.skipped -= 1
        elif tag not in ("figure", "div", "br", "hr"):
            self.parts.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        if not self.skipped:
            self.parts.append(data)


def outline(html: str) -> str:
    text = "".join(Outline(html).parts)
    block = r"(</?(?:p|h\d|ul|ol|li|blockquote|pre|table|t\w+|hr|br)\b[^>]*>)"
    text = re.sub(rf"\s*{block}\s*", r"\1", text)
    # the one paragraph of an item, and code's last line break
    text = re.sub(r"<li><p>(.*?)</p>", r"<li>\1", text, flags=re.S)
    return re.sub(r"\s+</code></pre>", "</code></pre>", text).strip()


def by_markdown_it(text: str) -> str:
    """The same text by an independent renderer, HTML off, its headings two levels lower."""
    renderer = MarkdownIt("commonmark", {"html": False, "breaks": True})
    html = renderer.enable(["table", "strikethrough"]).render(text)
    html = re.sub(r"(</?)s>", r"\1del>", html)
    return re.sub(r"(</?h)(\d)>", lambda m: f"{m[1]}{min(6, int(m[2]) + 2)}>", html)


@pytest.mark.parametrize("text", SAMPLES)
def test_as_an_independent_renderer(page, text):
    """What models usually write looks as it does by markdown-it."""
    assert outline(html_of(page, text)) == outline(by_markdown_it(text))


def test_where_we_differ(page):
    """Chinese punctuation ends emphasis, addresses need no brackets, entities are text."""
    assert html_of(page, "**重点：**后面") == "<p><strong>重点：</strong>后面</p>"
    html = html_of(page, "见https://a.org/b_c?d=1。还有(http://x.org/y), https://z.org/a_(b).")
    links = re.findall(r'href="([^"]*)"', html)
    assert links == ["https://a.org/b_c?d=1", "http://x.org/y", "https://z.org/a_(b)"]
    assert "<a" not in html_of(page, "`https://a.org` ftp://a.org www.a.org")
    assert html_of(page, "&lt; &amp;") == "<p>&amp;lt; &amp;amp;</p>"
    assert html_of(page, "- a\n\t- b") == "<ul><li>a<ul><li>b</li></ul></li></ul>"


@pytest.mark.parametrize(
    "address",
    [
        "javascript:alert(1)",
        "JaVaScRiPt:alert(1)",
        " javascript:alert(1)",
        "java\tscript:alert(1)",
        "&#106;avascript:alert(1)",
        "data:text/html,<script>alert(1)</script>",
        "vbscript:x",
        "file:///etc/passwd",
        "blob:https://a.org/x",
        "//evil.org/x",
        "/runs",
        "relative.html",
    ],
)
def test_unsafe_links(page, address):
    """Only absolute http, https and mailto are links; all else is the text it was."""
    for text in (f"[click]({address})", f"![image]({address})", f"<{address}>"):
        html = html_of(page, text)
        assert "<a" not in html and "<img" not in html, html
        assert page.evaluate("(text) => window.drawn(text).textContent", text) == text


def test_links_are_sealed(page):
    """A link opens elsewhere, with no hold on this page; an image is a link, too."""
    html = html_of(page, "[a](https://a.org) ![b](https://b.org/x.png)")
    assert html.count('target="_blank" rel="noopener noreferrer"') == 2
    assert "<img" not in html


def random_text(draw: random.Random) -> str:
    """Pieces of Markdown, HTML and control tokens, in any order."""
    pieces = PIECES.split(" ")
    length = draw.randrange(1, 40)
    return "".join(draw.choice(pieces) + draw.choice(BREAKS) for _ in range(length))


def test_however_it_arrives(page):
    """Any text, cut anywhere, becomes what it becomes in one go, of harmless elements only."""
    draw = random.Random(0)
    texts = [random_text(draw) for _ in range(250)] + SAMPLES
    cuts = [sorted(draw.randrange(len(text) + 1) for _ in range(len(text) // 2)) for text in texts]
    whole, pieces, tags, attributes = page.evaluate(
        """([texts, cuts]) => {
          const whole = [], pieces = [], tags = new Set(), attributes = new Set();
          texts.forEach((text, index) => {
            const once = window.drawn(text);
            whole.push(once.innerHTML);
            for (const element of once.querySelectorAll("*")) {
              tags.add(element.localName);
              for (const { name } of element.attributes) attributes.add(name);
            }
            const view = new MarkdownView();
            for (const cut of cuts[index]) view.update(text.slice(0, cut));
            view.update(text);
            pieces.push(view.root.innerHTML);
          });
          return [whole, pieces, [...tags], [...attributes]];
        }""",
        [texts, cuts],
    )
    for text, one, other in zip(texts, whole, pieces):
        assert other == one, text
    assert set(tags) <= set(ALLOWED.split())
    assert set(attributes) <= {"href", "target", "rel", "class", "start", "type", "data-copy"}


def test_a_changed_text_is_drawn_anew(page):
    """A view is not only for texts that grow."""
    html = page.evaluate(
        """() => {
          const view = new MarkdownView();
          for (const text of ["a\\n\\nb\\n\\nc\\n", "x\\n\\ny", "x", ""]) view.update(text);
          view.update("# z");
          return view.root.innerHTML;
        }"""
    )
    assert html == "<h3>z</h3>"


@pytest.mark.parametrize(
    "piece",
    ["word ", "*a ", "**_", "[", "[a](", "](x", "`" , "> ", "- ", "  - ", "| a ", "<a>", "\\", "  ",
     "~~~\n", "1. a\n", "#", "https://a.org/", "a|b\n-|-\n", "..."],
)  # fmt: skip
def test_long_repetitions(page, piece):
    """A model that repeats itself 20,000 times makes the page neither slow nor deep."""
    milliseconds, depth = page.evaluate(
        """(text) => {
          const start = performance.now();
          const root = window.drawn(text);
          const took = performance.now() - start;
          let deepest = 0;
          for (const leaf of root.querySelectorAll(":not(:has(*))")) {
            let depth = 0;
            for (let node = leaf; node !== root; node = node.parentNode) depth++;
            deepest = Math.max(deepest, depth);
          }
          return [took, deepest];
        }""",
        piece * 20_000,
    )
    assert milliseconds < 6_000
    assert depth < 60


def test_long_answers_stay_quick(page):
    """The last of 3,000 blocks cost about what the first did: nothing settled is redone."""
    first, last = page.evaluate(
        """() => {
          let view;
          const took = (count) => {
            const start = performance.now();
            for (let n = 0; n < count; n++) {
              view.update(view.text + "- Some **words**\\n\\nof `it`\\n\\n");
            }
            return performance.now() - start;
          };
          view = new MarkdownView();
          took(200); // warm
          view = new MarkdownView();
          const first = took(200);
          took(1300);
          return [first, took(200)];
        }"""
    )
    assert last < 10 * first + 20
