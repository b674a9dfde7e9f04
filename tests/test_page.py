"""The page, in a real Chromium: continue, chat, teach, undo, sessions; keyboard, phone, dark, high contrast, projector.

With PAGE_SHOTS=FOLDER it shows the demonstration, and pictures are written there: PAGE_SHOTS=docs … -k "desk-light or
phone-dark" makes those of docs/apps.md.
"""

# ruff: noqa: E402  what may be missing is imported after it was found not to be
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

import hope
from apps.runs import DEMO
from config import Config
from hope import Hope

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
for package in ("fastapi", "uvicorn", "playwright"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install -r apps/requirements.txt")
if not CHROMIUM:
    pytest.skip("no Chromium is installed: apt-get install chromium", allow_module_level=True)

from playwright.sync_api import sync_playwright

try:
    from axe_playwright_python import sync_playwright as axe
except ModuleNotFoundError:  # then its rules are not tried
    axe = None

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.filterwarnings("default")
SHOTS = os.environ.get("PAGE_SHOTS", "")
LESSON = "The grellip sings in spring, and the miller keeps the coins in a blue jar. " * 4


@contextlib.contextmanager
def serving(run, folder, *flags):
    """The address of `python -m apps.serve` with this run, its sessions in the folder."""
    command = [sys.executable, "-m", "apps.serve", run, "--port", "0", "--quiet", "--session-folder", folder, *flags]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8") as process:
        try:
            found = re.search(r"http://\S+", process.stdout.readline())
            yield found[0] + "/"
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    if SHOTS:  # for pictures a model that has learned something
        return DEMO
    folder = tmp_path_factory.mktemp("runs") / "small"
    folder.mkdir()
    config = Config(width=16, layers=3, heads=2, segment=16, hidden=16, chunks=(1, 4), memory_chunk=8,
                    projection_chunk=8, learn_rate=2.0)
    hope.save(folder / "checkpoint.npz", Hope(config, np.random.default_rng(0)))
    return folder


@pytest.fixture(scope="module")
def url(run, tmp_path_factory):
    with serving(run, tmp_path_factory.mktemp("sessions")) as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=[
            "--no-sandbox", "--host-resolver-rules=MAP *.example.test 127.0.0.1"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, url):
    with opened_at(browser, url) as found:
        yield found


@contextlib.contextmanager
def opened_at(browser, url):
    """A page that complains about nothing and fetches nothing from elsewhere."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    opened, complaints = context.new_page(), []
    opened.on("console", lambda message: complaints.append(message.text)
              if message.type == "error" and "status of 4" not in message.text else None)  # tests bring those about
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda request: complaints.append(request.url)
              if not request.url.startswith((url, "data:", "blob:")) else None)
    for path in ("**/v1/chat/completions", "**/v1/completions"):  # the same answers every time
        opened.route(path, lambda route: route.continue_(
            post_data=json.dumps({**route.request.post_data_json, "seed": 4})))
    opened.set_default_timeout(120_000)  # milliseconds: the machine may have other things to do
    opened.goto(url)
    opened.wait_for_selector("#about:has-text('parameters')")
    yield opened
    assert complaints == []
    context.close()


def finished(page) -> None:
    page.wait_for_selector("#go:not([disabled])", timeout=120_000)


def say(page, text: str, mode: str = "continue") -> None:
    page.evaluate("mode => document.querySelector(`input[value=${mode}]`).click()", mode)
    page.fill("#text", text)
    page.click("#go")
    finished(page)


def teach(page, text: str = LESSON) -> None:
    page.fill("#paste", text)
    page.click("#teach-it")
    finished(page)


def spoken(page) -> str:
    return page.locator(".entry:last-child .text").last.inner_text()


def test_a_text_is_continued_its_own_letters_coloured_and_a_mark_where_the_model_goes_on(page):
    page.click("#how summary")
    page.fill("#length", "40")
    say(page, "hello é")
    own, written = spoken(page).split("▶")
    assert own == "hello é" and page.locator(".entry .text span[class^=h]").count() > len(own)
    assert page.locator(".entry .text span[title]").first.get_attribute("title").endswith(" bits")
    assert page.locator("#curve polyline").count() == 2 and page.locator("#curve .begin").count() == 1
    axes = page.text_content("#curve")
    assert "bits per byte" in axes and "byte of the text" in axes and "the model goes on" in axes
    assert "yours" in page.inner_text("#mean") and "main memory" in page.inner_text("#drift")
    assert page.locator("#raster rect").count() == 0  # learning is off
    page.click("text=take this as the text")
    assert page.input_value("#text") == (own + written).replace("\r", "\n")  # as fields of text have it


def test_a_click_on_an_example_is_enough(page):
    assert page.locator("#examples button").count() == 3
    page.click("#examples button >> nth=1")
    finished(page)
    assert "▶" in spoken(page)


def test_in_a_chat_messages_alternate_and_only_what_was_typed_is_shown(page):
    say(page, "hello", "chat")
    say(page, "and more", "chat")
    assert [b.inner_text() for b in page.locator(".entry b").all()] == ["you", "model"] * 2
    assert page.locator(".entry:last-child .yours").inner_text() == "and more" and page.input_value("#text") == ""


@pytest.mark.parametrize("taught", [True, False])
def test_an_adopted_model_is_shown_in_its_own_tokens_and_talks_as_it_was_taught(tmp_path, browser, taught):
    for package in ("tokenizers", "jinja2"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install -r apps/adopt/requirements.txt")
    from test_adopt import LLAMA, TEMPLATE, adopted
    adopted(tmp_path, LLAMA, "--chunks", "1,2", template=TEMPLATE if taught else None)
    with serving(tmp_path / "run", tmp_path / "sessions") as url, opened_at(browser, url) as page:
        assert ("was not taught to converse" in page.inner_text("#about")) != taught
        page.click("#how summary")
        assert page.inner_text("#unit") == "length in tokens"
        page.fill("#length", "40")
        for message in ("7 birds and été", "and 8 birds"):
            say(page, message, "chat")
            spans = page.locator(".entry:last-child .yours span")
            assert "".join(spans.all_inner_texts()) == message
            titles = [spans.nth(i).get_attribute("title") for i in range(len(message))]
            first = message.index(" birds")
            assert len(set(titles[first:first + 6])) == 1 < len(set(titles))  # one token: its letters share its bits
        page.check("#learn")
        teach(page, "3 birds and 3 birds are 6 birds. " * 8)
        assert "takes" in page.inner_text("#step") and "moves every 32 tokens, C = 1" in page.text_content("#raster")
        assert page.locator("#raster rect").count() > 0 and "bytes learned" in page.inner_text("#learned")


def test_with_learning_on_levels_of_plain_names_move_and_a_reset_asks_and_forgets(page):
    page.check("#learn")
    say(page, "remember " * 20)
    fast, slow = (page.locator(f"#raster rect[data-chunk='{chunk}']").count() for chunk in (1, 4))
    assert fast > slow > 0  # the slow level moves less often
    names = page.text_content("#raster")
    assert "fast level" in names and "moves every 32 bytes, C = 1" in names and "moves every 128 bytes, C = 4" in names
    assert "bytes learned" in page.inner_text("#learned")
    page.click("#tools summary")
    page.click("#reset")
    page.click("#keep")
    assert "bytes learned" in page.inner_text("#learned")
    page.click("#reset")
    page.click("#forget")
    page.wait_for_selector("#learned:has-text('nothing learned yet')")
    finished(page)
    assert page.inner_text("#log") == "" and page.locator("#raster rect").count() == 0


def test_a_lesson_shows_before_and_after_with_learning_on_and_off_and_can_be_undone(page):
    teach(page)
    saved = {}
    for on in ("true", "false"):
        box = page.locator(f"#result [data-on={on}]")
        assert box.locator(".bar").count() == 2
        before, after = [float(text.split()[2]) for text in box.locator(".soft").all_inner_texts()]
        wide = [bar.bounding_box()["width"] for bar in box.locator(".bar").all()]
        assert wide[1] / wide[0] == pytest.approx(after / before, abs=0.02)
        words = box.locator(".saved").inner_text().split()
        saved[on] = float(words[1]) * (1 if words[0] == "saves" else -1)
        assert saved[on] == pytest.approx(100 * (1 - after / before), abs=1)
    assert saved["true"] > max(saved["false"], 0)
    assert "the second reading" in page.text_content("#curve") and "the first reading" in page.inner_text("#mean")
    page.click("#tools summary")
    page.click("#undo")
    finished(page)
    assert "undone" in page.inner_text("#step") and "nothing learned yet" in page.inner_text("#learned")
    assert not page.is_visible("#result")
    page.click("#undo")
    page.wait_for_selector("#problem:has-text('nothing to undo')")


def test_what_was_learned_in_a_chat_can_be_undone_and_is_not_said_again(page):
    said = []
    page.on("request", lambda request: said.append(request.post_data_json["messages"])
            if request.url.endswith("/chat/completions") else None)
    say(page, "hello", "chat")
    page.check("#learn")
    say(page, "remember this", "chat")
    page.click("#tools summary")
    page.click("#undo")
    finished(page)
    assert "nothing learned yet" in page.inner_text("#learned") and page.locator(".entry").count() == 1
    say(page, "and now?", "chat")
    assert [message["content"] for message in said[-1] if message["role"] == "user"] == ["hello", "and now?"]


def test_nothing_is_lost_at_reload(page):
    say(page, "hello")
    teach(page)
    page.fill("#text", "half a thought")
    page.check("#learn")
    seen = "() => ['log', 'result', 'mean', 'moved', 'drift', 'named'].map(id => document.getElementById(id).innerText)"
    before = page.evaluate(seen)
    page.reload()
    page.wait_for_selector("#about:has-text('parameters')")
    page.wait_for_function(f"before => JSON.stringify(({seen})()) === JSON.stringify(before)", arg=before)
    assert page.input_value("#text") == "half a thought" and page.is_checked("#learn")
    assert page.input_value("#paste") == LESSON


def test_sessions_have_names_and_are_apart(page):
    page.click("#tools summary")
    first = page.inner_text("#named")
    teach(page)
    page.click("#new")
    page.fill("#name", "Jane Doe / 2b")
    page.press("#name", "Enter")
    page.wait_for_selector("#named:has-text('Jane Doe / 2b')")
    page.wait_for_selector("#learned:has-text('nothing learned')")
    assert not page.is_visible("#result")
    teach(page, "another text " * 9)
    assert f"{len('another text ' * 9):,} bytes learned" in page.inner_text("#learned")
    page.select_option("#sessions", first)
    page.wait_for_selector(f"#learned:has-text('{len(LESSON)} bytes learned')")
    assert page.is_visible("#result")


def test_what_was_measured_can_be_exported(page, tmp_path):
    say(page, "hello")
    page.click("#tools summary")
    with page.expect_download() as loaded:
        page.click("#export")
    loaded.value.save_as(tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    letters = found["entries"][0]["yours"]
    assert "".join(letter for letter, _ in letters) == "hello" and all(bits >= 0 for _, bits in letters)
    assert found["session"] == page.inner_text("#named")


@pytest.mark.parametrize("how", ["#stop", "Escape"])
def test_a_stopped_answer_stays_and_the_next_one_can_be_asked(page, how):
    stop = "document.getElementById('stop').click()" if how == "#stop" else (
        "document.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape'}))")
    page.evaluate(f"""() => new MutationObserver((_, observer) => {{
        if (!document.querySelector('.entry .mark ~ span')) return;
        observer.disconnect();
        {stop};
    }}).observe(document.getElementById('log'), {{childList: true, subtree: true}})""")
    page.click("#how summary")
    page.fill("#length", "1000")
    say(page, "tell me more")
    assert page.inner_text("#problem") == "" and 0 < page.locator(".mark ~ span").count() < 900
    page.fill("#length", "40")
    say(page, "hello")
    assert page.locator(".entry").count() == 2


@pytest.mark.parametrize("host, allowed", [("localhost", True), ("chat.example.test", False)])
def test_a_page_of_another_origin_may_ask_if_it_is_of_this_machine(browser, url, host, allowed, tmp_path):
    (tmp_path / "index.html").write_text("<!doctype html><title>another page</title>", encoding="utf-8")
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=tmp_path)) as elsewhere:
        threading.Thread(target=elsewhere.serve_forever).start()
        context = browser.new_context()
        other = context.new_page()
        other.goto(f"http://{host}:{elsewhere.server_port}/")
        found = other.evaluate("""async url => {
            const body = JSON.stringify({prompt: "x", max_tokens: 3, stream: true});
            try { return await (await fetch(url + "v1/completions", {method: "POST", body, headers:
                {"content-type": "application/json", authorization: "Bearer none"}})).text(); }
            catch (error) { return String(error); } }""", url)
        context.close()
        elsewhere.shutdown()
    assert ("data: [DONE]" in found) is allowed, found


def test_what_the_server_refuses_is_said_and_the_text_is_not_lost(page):
    page.route("**/v1/completions", lambda route: route.fulfill(
        status=429, content_type="application/json", body='{"error": {"message": "too many", "type": "x"}}'))
    page.fill("#text", "hello")
    page.press("#text", "Control+Enter")
    page.wait_for_selector("#problem:has-text('too many')")
    assert page.input_value("#text") == "hello" and page.locator(".entry").count() == 0


def test_of_several_models_one_is_chosen_and_what_was_done_with_each_is_apart(browser, run, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    hope.save(other / "checkpoint.npz", hope.load(run / "checkpoint.npz")[0])
    with serving(run, tmp_path / "s", other) as found, contextlib.closing(browser.new_context()) as context:
        page = context.new_page()
        page.goto(found)
        page.wait_for_selector(f"#about:has-text('{run.name}:')")
        say(page, "hello")
        page.click("#tools summary")
        for name, entries in (("other", 0), (run.name, 1)):
            page.select_option("#models", name)
            page.wait_for_selector(f"#about:has-text('{name}:')")
            assert page.locator(".entry").count() == entries
        page.select_option("#models", "other")
        page.reload()
        page.wait_for_selector("#about:has-text('other:')")
        assert page.input_value("#models") == "other"


def test_where_a_key_is_needed_it_is_asked_for(browser, run, tmp_path):
    with (serving(run, tmp_path, "--api-key", "open sesame") as found,
          contextlib.closing(browser.new_context()) as context):
        page = context.new_page()
        page.goto(found)
        page.wait_for_selector("#locked:visible")
        for key, words in (("wrong", "a key is needed"), ("open sesame", "")):
            page.fill("#key", key)
            page.click("#locked button")
            page.wait_for_selector("#problem:has-text('a key is needed')" if words else "#about:has-text('parameters')")
        assert not page.is_visible("#locked") and page.inner_text("#problem") == ""
        say(page, "hello")
        assert "▶" in spoken(page)


def test_everything_is_reached_with_the_keyboard_and_has_a_name(page):
    page.focus("#tools summary")
    page.keyboard.press("Enter")
    seen = []
    for _ in range(16):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("() => document.activeElement.id || document.activeElement.className"))
    assert seen == ["sessions", "new", "export", "reset", "projector", *["example"] * 3, "text", "go", "learn",
                    "", "log", "paste", "teach-it", "made-up"]  # "" are the options, which open; nothing can be undone
    page.focus("#learn")
    page.keyboard.press("Space")
    assert page.is_checked("#learn")
    for role, name in (("switch", "learn from it"), ("button", "Continue"), ("textbox", "Text to continue"),
                       ("log", "What was read and written"), ("region", "Teach it"),
                       ("heading", "How surprised it was")):
        assert page.get_by_role(role, name=name, exact=True).count() == 1, (role, name)


SIZES = {"desk": (1280, 800), "phone": (390, 844)}


@pytest.mark.parametrize("size", SIZES)
def test_what_it_is_an_example_and_both_modes_are_above_the_fold(page, size):
    width, height = SIZES[size]
    page.set_viewport_size({"width": width, "height": height})
    for box in ("#what", "#examples", "#text", "#go", "#paste", "#teach-it"):
        found = page.locator(box).bounding_box()
        assert found["y"] + found["height"] <= height and found["x"] + found["width"] <= width, box


@pytest.mark.parametrize("media", [{"color_scheme": "light"}, {"color_scheme": "dark"}, {"contrast": "more"},
                                   {"forced_colors": "active"}],
                         ids=lambda media: next(iter(media.values())))
@pytest.mark.parametrize("size", [*SIZES, "projector"])
def test_it_fits_can_be_read_and_breaks_no_rule_of_accessibility(page, size, media):
    page.emulate_media(**media)
    width, height = SIZES.get(size, (1920, 1080))
    page.set_viewport_size({"width": width, "height": height})
    page.click("#tools summary")
    if size == "projector":
        page.click("#projector")
        assert page.evaluate("() => parseFloat(getComputedStyle(document.body).fontSize)") >= 24
    page.click("#how summary")
    page.fill("#length", "200" if SHOTS else "40")
    page.click("#how summary")
    page.check("#learn")
    page.click("#examples button >> nth=0")
    finished(page)
    teach(page)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    style = "([box, name]) => getComputedStyle(document.querySelector(box))[name]"
    assert contrast(page.evaluate(style, ["#log", "color"]), page.evaluate(style, ["#said", "backgroundColor"])) > 7
    if SHOTS:
        page.click("#tools summary")
        page.evaluate("() => window.scrollTo(0, 0)")
        name = f"page-{size}-{next(iter(media.values()))}"
        page.screenshot(path=f"{SHOTS}/{name}.png", full_page=size == "phone")
    if axe:
        found = axe.Axe().run(page)
        broken = {one["id"]: [node["html"] for node in one["nodes"]] for one in found.response["violations"]}
        assert broken == {}


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours rgb(r, g, b), by WCAG."""
    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour[4:-1].split(",")]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
