"""The training page in a real browser: it draws runs as they grow, and does what a hand does."""

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
sync_api = pytest.importorskip("playwright.sync_api")

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "serving" / "pages"
CSP = "default-src 'self'; img-src 'self' data:"
BLUE = (31, 111, 184)  # --run-0 in light


def line(step: int, **values) -> str:
    return json.dumps({"step": step} | values) + "\n"


def make_run(folder: Path, lines=(), **args) -> Path:
    folder.mkdir(parents=True)
    content = {"command": ["train_pretrain.py"], "total_steps": 100} | args
    (folder / "args.json").write_text(json.dumps(content))
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


def steps(first: int, last: int, height, **more) -> list[str]:
    """Log lines with a loss of height(step)."""
    return [
        line(i, tokens=10 * i, loss=height(i), lr=1e-3, tokens_per_s=5.0, **more)
        for i in range(first, last + 1)
    ]


END = line(100, event="end", state="finished")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def server(out):
    """The address of a server with the page, the routes, and the headers that the app sends."""
    import uvicorn
    from fastapi import FastAPI
    from fastapi.responses import FileResponse

    from serving.runs import router

    app = FastAPI()
    app.include_router(router(out))
    headers = {"Content-Security-Policy": CSP}

    @app.get("/runs")
    def page():
        return FileResponse(PAGES / "runs.html", headers=headers)

    @app.get("/pages/{name}")
    def file(name: str):
        return FileResponse(PAGES / name, headers=headers)

    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listening.close()


@pytest.fixture
def open_page(browser, server):
    """Opens the page; at the end nothing may have gone wrong in it, nor anything been asked
    of another server."""
    pages, problems, asked = [], [], []

    def open_page(hash="", **options):
        options = {"viewport": {"width": 1280, "height": 800}, "locale": "en-US"} | options
        context = browser.new_context(**options)
        context.set_default_timeout(60_000)
        page = context.new_page()
        pages.append(page)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        page.on("request", lambda request: asked.append(request.url))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.goto(f"{server}/runs{hash}")
        return page

    open_page.asked, open_page.problems = asked, problems
    yield open_page
    for page in pages:
        page.context.close()
    assert not problems
    assert all(url.startswith((server, "data:")) for url in asked)


def chart(page, title: str):
    found = page.locator(".chart", has=page.get_by_role("heading", name=title, exact=True))
    found.wait_for()
    return found


def box_of(page, run: str):
    """The check box of a run in the list."""
    name = page.locator(".name").get_by_text(run, exact=True)
    return page.locator("#list li", has=name).get_by_role("checkbox")


def last_value(page, title: str) -> str:
    """The last values in a chart's caption, with single spaces between them."""
    return " ".join(chart(page, title).locator(".values").inner_text().split())


COLORED = """
([canvas, color, opacity]) => {
  const { width, height } = canvas;
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  const places = [];
  for (let i = 0; i < data.length; i += 4) {
    const isIt = color.every((value, k) => Math.abs(data[i + k] - value) < 12);
    if (isIt && data[i + 3] >= opacity) places.push([(i / 4) % width, Math.floor(i / 4 / width)]);
  }
  return { places, width, height };
}
"""


def colored(page, title: str, color=BLUE, opacity=60) -> list[tuple[float, float]]:
    """Where a chart has a colour: (x, y) from 0 to 1, from the left and from the bottom.

    opacity: at least so much of 255; thin lines lie between two rows of pixels.
    """
    canvas = chart(page, title).locator("canvas").first.element_handle()
    found = page.evaluate(COLORED, [canvas, list(color), opacity])
    width, height = found["width"], found["height"]
    return [(x / width, 1 - y / height) for x, y in found["places"]]


def wait_until(condition, seconds: float = 60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)


def test_curves_are_where_the_numbers_are(open_page, out):
    """A loss of 1.1, then of 2.9: the line is low on the left, high on the right, at no edge."""
    make_run(out / "a", [*steps(1, 100, lambda i: 1.1 if i <= 50 else 2.9), END])
    page = open_page()
    assert last_value(page, "Loss") == "2.9"
    wait_until(lambda: colored(page, "Loss"))
    places = colored(page, "Loss")
    left = [y for x, y in places if 0.1 < x < 0.45]
    right = [y for x, y in places if 0.6 < x < 0.95]
    assert left and right and max(left) < 0.3 and min(right) > 0.8
    label = chart(page, "Loss").locator("canvas.top").get_attribute("aria-label")
    assert label.startswith("Loss: a  2.9. ")


class Growing:
    """A run in a process that holds its folder; `write` appends lines, `end` ends it."""

    def __init__(self, folder: Path):
        self.path = folder / "metrics.jsonl"
        code = "import sys; from training import run_lock as r; r.take(sys.argv[1]); print(1, flush=True); input()"  # noqa: E501
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, str(folder)], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self.process.stdout.readline() == "1\n"

    def write(self, lines: list[str]):
        with open(self.path, "a") as f:
            f.write("".join(lines))

    def end(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def growing():
    started = []

    def start(folder):
        started.append(Growing(folder))
        return started[-1]

    yield start
    for run in started:
        run.end()


def test_a_growing_run_is_followed(open_page, out, growing):
    """Badge, progress, time left, values and line follow the file; so do samples, and the end."""
    run = growing(make_run(out / "a"))
    page = open_page()
    entry = page.locator("#list li")
    entry.get_by_text("running").wait_for()
    run.write(steps(1, 10, lambda i: 9.0, minutes_left=2.0))
    wait_until(lambda: page.locator(".chart").count() and last_value(page, "Loss") == "9")
    assert "step 10 / 100" in entry.inner_text() and "2 min left" in entry.inner_text()
    assert entry.locator("progress").evaluate("bar => bar.value") == pytest.approx(0.1)
    run.write(steps(11, 40, lambda i: 5.0, minutes_left=1.0))
    run.write([line(40, val_loss=4.5), line(40, event="samples", texts=["Once ⟶ upon"])])
    wait_until(lambda: last_value(page, "Loss") == "5 ●4.5")
    assert page.locator("#samples article").inner_text().split("\n")[-1] == "Once ⟶ upon"
    highest = max(y for x, y in colored(page, "Loss") if x < 0.3)
    lowest = min(y for x, y in colored(page, "Loss") if x > 0.7)
    assert highest > 0.8 > 0.4 > lowest
    run.write([line(100, event="end", state="finished")])
    run.end()
    entry.get_by_text("finished", exact=True).wait_for()
    assert entry.locator("progress").is_hidden()


def test_a_resumed_run_forgets_what_was_dropped(open_page, out, growing):
    """The file is replaced by a shorter one: the page shows that one, and no point twice."""
    run = growing(make_run(out / "a", steps(1, 90, lambda i: 2.0)))
    page = open_page()
    assert last_value(page, "Loss") == "2"
    new = run.path.with_suffix(".tmp")
    new.write_text("".join(steps(1, 20, lambda i: 3.0)))
    new.replace(run.path)
    wait_until(lambda: last_value(page, "Loss") == "3")
    page.locator(".chart .top").first.press("End")
    assert "step 20" in chart(page, "Loss").locator(".tip").inner_text()


def test_runs_over_each_other_and_their_flags(open_page, out):
    """A colour each; of the flags what differs, and all of them with the switch."""
    make_run(out / "a", [*steps(1, 100, lambda i: 1.1), END], seed=1, batch_size=8)
    make_run(out / "group/b", [*steps(1, 100, lambda i: 1.9), END], seed=2, batch_size=8)
    page = open_page("#run=a")
    assert last_value(page, "Loss") == "1.1"
    box_of(page, "group/b").check()
    wait_until(lambda: last_value(page, "Loss") == "1.1 1.9")
    assert colored(page, "Loss") and colored(page, "Loss", (213, 94, 0))
    assert "run=group%2Fb" in page.url
    rows = page.locator("#flags tbody tr")
    wait_until(lambda: rows.count() == 1)
    assert rows.inner_text().split() == ["seed", "1", "2"]
    page.get_by_label("all, not only what differs").check()
    assert [row.split()[0] for row in rows.all_inner_texts()] == ["seed", "batch_size"]
    box_of(page, "a").uncheck()
    wait_until(lambda: last_value(page, "Loss") == "1.9")
    page.reload()  # the address keeps the choice
    wait_until(lambda: last_value(page, "Loss") == "1.9")


def test_the_cursor_reads_the_curve(open_page, out):
    """At a step: every line's value there, in the chart under the mouse alone."""
    lines = steps(1, 100, lambda i: 10.0 + i)
    make_run(out / "a", [*lines, line(50, val_loss=44.0), line(100, val_loss=33.0), END])
    page = open_page()
    top = chart(page, "Loss").locator(".top")
    box = top.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tip = chart(page, "Loss").locator(".tip")
    step = int(tip.inner_text().split("\n")[0].removeprefix("step "))
    assert 45 < step < 55
    rows = tip.locator(".row").all_inner_texts()
    assert rows[0].split("\n") == ["a · training", str(10 + step)]
    assert rows[1].startswith("a · held out\n44")
    assert page.locator(".tip:visible").count() == 1
    page.mouse.move(5, 5)
    assert page.locator(".tip:visible").count() == 0


def test_keys_read_and_zoom(open_page, out):
    """A chart is reached by Tab; arrows walk its points, + − 0 zoom."""
    make_run(out / "a", [*steps(1, 100, lambda i: 10.0 + i), END])
    page = open_page()
    loss = chart(page, "Loss")
    reached = "document.activeElement.matches('.top')"
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate(reached):
            break
    assert page.evaluate(reached)
    tip = loss.locator(".tip")
    for key, step in (("ArrowRight", 1), ("ArrowRight", 2), ("Shift+ArrowRight", 12),
                      ("ArrowLeft", 11), ("End", 100), ("Home", 1)):  # fmt: skip
        page.keyboard.press(key)
        assert tip.inner_text().startswith(f"step {step}\n"), key
    for _ in range(5):
        page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("+")
    page.get_by_role("button", name="Whole run").wait_for()
    page.keyboard.press("Home")
    assert tip.inner_text().startswith("step 26\n")  # 51 ± 25 of 1 … 100
    page.keyboard.press("0")
    assert page.get_by_role("button", name="Whole run").is_hidden()
    page.keyboard.press("Escape")
    assert tip.is_hidden()


def test_dragging_zooms_and_shows_more(open_page, out):
    """Of 5,000 lines a drag shows some, each with its own point; a double click shows all again."""
    make_run(out / "a", [*steps(1, 5000, lambda i: 9.0 if i == 2500 else 2.0), END])
    page = open_page()
    loss = chart(page, "Loss")
    box = loss.locator(".top").bounding_box()

    def tip_at(share: float) -> str:
        page.mouse.move(box["x"] + box["width"] * share, box["y"] + 60)
        return loss.locator(".tip .number").first.inner_text()

    wait_until(lambda: tip_at(0.3) == "2")
    middle = next(s for s in (0.50 + i / 500 for i in range(40)) if tip_at(s) != "2")
    assert tip_at(middle).endswith("(2 – 9)")  # one of a dozen lines that this point stands for
    page.mouse.move(box["x"] + box["width"] * (middle - 0.02), box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * (middle + 0.02), box["y"] + 60, steps=4)
    page.mouse.up()
    page.get_by_role("button", name="Whole run").wait_for()
    wait_until(lambda: [n for n in (tip_at(s / 250) for s in range(100, 160)) if n == "9"])
    assert any("low=" in url for url in open_page.asked)
    page.mouse.dblclick(box["x"] + box["width"] * 0.5, box["y"] + 60)
    assert page.get_by_role("button", name="Whole run").is_hidden()


def test_log_and_smoothing(open_page, out):
    """On a logarithmic axis 13 → 130 → 1300 are equally far; smoothing flattens a zigzag."""
    make_run(out / "a", [*steps(1, 100, lambda i: 13 * 10.0 ** ((i > 33) + (i > 66))), END])
    make_run(out / "b", [*steps(1, 100, lambda i: float(i % 2)), END])
    page = open_page("#run=a")
    loss = chart(page, "Loss")
    wait_until(lambda: colored(page, "Loss"))

    def heights() -> list[float]:
        places = colored(page, "Loss")
        parts = ((0.15, 0.3), (0.45, 0.6), (0.75, 0.9))
        return [min(y for x, y in places if low < x < high) for low, high in parts]

    low, middle, high = heights()
    assert middle - low < 0.2 * (high - low)
    loss.get_by_role("button", name="log").click()
    low, middle, high = heights()
    assert middle - low == pytest.approx(high - middle, abs=0.04)
    page.reload()
    wait_until(lambda: colored(page, "Loss"))
    assert loss.get_by_role("button", name="log").get_attribute("aria-pressed") == "true"
    loss.get_by_role("button", name="log").click()

    box_of(page, "a").uncheck()
    box_of(page, "b").check()
    wait_until(lambda: colored(page, "Loss"))
    span = [y for _, y in colored(page, "Loss")]
    page.get_by_label("smoothing").fill("80")
    # what it was is still there, but faint
    wait_until(lambda: max(y for _, y in colored(page, "Loss", opacity=200)) < 0.8)
    after = [y for x, y in colored(page, "Loss", opacity=200) if 0.2 < x < 0.8]
    assert max(span) - min(span) > 0.6 and max(after) - min(after) < 0.1


def test_the_x_axis_can_be_data_or_time(open_page, out):
    """Tokens, and the time that their speed makes of them."""
    make_run(out / "a", [*steps(1, 100, lambda i: 1.0), END])  # 10 tokens a step, 5 a second
    page = open_page()
    for axis, head in (("seen", "tokens 1,000"), ("time", "min 3 min"), ("step", "step 100")):
        page.get_by_label("x axis").select_option(axis)
        top = chart(page, "Loss").locator(".top")

        def is_told(top=top, head=head):
            top.press("End")
            return chart(page, "Loss").locator(".tip").inner_text().startswith(head)

        wait_until(is_told)


def test_samples_over_time(open_page, out):
    """The slider goes back to what the model wrote earlier, and stays there."""
    events = [line(i, event="samples", texts=[f"A ⟶ text {i}", "B"]) for i in (0, 50, 100)]
    make_run(out / "a", [*steps(1, 100, lambda i: 1.0), *events, END])
    page = open_page()
    page.get_by_text("text 100").wait_for()
    page.get_by_label("Step of the samples").press("ArrowLeft")
    assert page.locator("#samples p").all_inner_texts() == ["A ⟶ text 50", "B"]
    assert page.locator("#samples output").inner_text() == "step 50"


EVIL = "<img src=x onerror=alert(1)><b>&amp;"


def test_what_runs_say_is_text(open_page, out):
    """Markup in names, samples, flags, fields and errors is shown as it is and makes nothing."""
    lines = [*steps(1, 100, lambda i: 1.0, **{f"{EVIL}f": 2.0})]
    lines += [line(100, event="samples", texts=[EVIL]), line(100, event=EVIL, why=EVIL)]
    lines += [line(100, event="end", state="failed", error=EVIL)]
    name = EVIL.replace("/", "")
    make_run(out / name, lines, seed=EVIL, **{EVIL: 1})
    page = open_page()
    assert page.locator("#samples article p").inner_text() == EVIL
    assert page.locator("#list .name").inner_text() == name
    assert page.locator("#list .why").inner_text() == EVIL
    chart(page, f"{EVIL}f")
    page.get_by_role("rowheader", name=EVIL).wait_for()
    chart(page, "Loss").locator(".top").press("End")
    assert EVIL in chart(page, "Loss").locator(".tip .error").inner_text()
    assert page.locator("img, main b").count() == 0


def test_numbers_of_any_kind_get_a_chart(open_page, out):
    """Known ones under their names, held-out ones with them, unknown ones under their own."""
    names = ("val_loss", "chosen_reward", "val_rejected_reward", "max_expert_load", "my_number")
    more = dict.fromkeys(names, 0.5)
    make_run(out / "a", [*steps(1, 10, lambda i: 1.0, **more), END])
    page = open_page()
    chart(page, "my_number")
    titles = page.locator(".chart h3").all_inner_texts()
    expected = ["Loss", "Rewards", "Learning rate", "Busiest expert", "Speed", "my_number"]
    assert titles == expected
    keys = chart(page, "Rewards").locator(".legend").inner_text()
    assert keys.split("\n") == ["training", "held out", "chosen", "rejected"]


@pytest.mark.slow
def test_it_looks_seldom_and_only_while_it_is_seen(open_page, out, growing):
    """Once runs have ended: every 10 s. Of a running one: every few; hidden: not at all."""
    make_run(out / "a", [*steps(1, 100, lambda i: 1.0), END])
    page = open_page()
    chart(page, "Loss")
    page.wait_for_timeout(500)
    open_page.asked.clear()
    page.wait_for_timeout(4_000)
    assert not open_page.asked
    run = growing(make_run(out / "b", steps(1, 10, lambda i: 1.0)))
    hide = "hidden => { Object.defineProperty(document, 'hidden', { get: () => hidden,"
    hide += " configurable: true }); document.dispatchEvent(new Event('visibilitychange')); }"
    page.evaluate(hide, True)
    page.reload()
    chart(page, "Loss")
    page.evaluate(hide, False)
    page.wait_for_timeout(500)
    open_page.asked.clear()
    for step in range(11, 17):
        run.write(steps(step, step, lambda i: 1.0))
        page.wait_for_timeout(1_000)
    of_data = [url for url in open_page.asked if "/runs/data" in url]
    assert 1 <= len(of_data) <= 4 and all("since=" in url for url in of_data)
    page.evaluate(hide, True)
    page.wait_for_timeout(500)
    open_page.asked.clear()
    page.wait_for_timeout(5_000)
    assert not open_page.asked


def test_on_a_phone(open_page, out):
    """Nothing is wider than the screen; the list is folded; a tap reads the curve; in Chinese."""
    make_run(out / "a_long_name_of_a_run_that_needs_more_room", [
        *steps(1, 100, lambda i: 1.0, minutes_left=0.0), line(100, val_loss=2.0),
        line(100, event="samples", texts=["word" * 100]), END,
    ], cache="/a/long/path" * 20)  # fmt: skip
    page = open_page(
        viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True, locale="zh-CN"
    )
    loss = chart(page, "损失")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("#list li").first.is_hidden()
    page.locator("#list summary").tap()
    page.get_by_text("已完成").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    loss.locator(".top").tap()
    assert "训练" in loss.locator(".tip").inner_text()
    box = loss.locator(".tip").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 390


def test_dark_and_light_are_drawn_anew(open_page, out):
    """The button in the bar changes the page and the curves in it."""
    make_run(out / "a", [*steps(1, 100, lambda i: 1.0), END])
    page = open_page()
    wait_until(lambda: colored(page, "Loss"))
    page.get_by_role("button", name="Dark or light").click()
    wait_until(lambda: colored(page, "Loss", (95, 176, 245)))
    assert not colored(page, "Loss")


def test_a_server_that_is_away_is_told_and_found_again(open_page, out):
    """The curves stay; a line says what is wrong, and goes when the server is back."""
    make_run(out / "a", [*steps(1, 100, lambda i: 1.0), END])
    page = open_page()
    chart(page, "Loss")
    page.route("**/runs/list", lambda route: route.abort())
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_timeout(6_500)  # the list is asked for every 6 s at most
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.get_by_text("No answer").wait_for()
    assert page.locator(".chart").count()
    page.unroute("**/runs/list")
    wait_until(lambda: not page.get_by_text("No answer").count())
    open_page.problems.clear()  # the browser notes every failed request


def test_without_runs_it_says_how_to_make_one(open_page, out):
    """And shows the first one when it comes."""
    page = open_page()
    page.get_by_text("python train_pretrain.py").wait_for()
    make_run(out / "a", [*steps(1, 100, lambda i: 1.0), END])
    assert page.locator(".chart").count() == 0
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    chart(page, "Loss").wait_for()
