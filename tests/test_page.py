"""The page, in a real Chromium: talk, watch, teach, reset; with the keyboard, at phone width, in light and dark.

With PAGE_SHOTS=FOLDER the pictures that are looked at for the README are written there.
"""

# ruff: noqa: E402  what may be missing is imported after it was found not to be
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

import hope
from config import Config
from hope import Hope

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
for package in ("fastapi", "uvicorn", "playwright"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install -r apps/requirements.txt")
if not CHROMIUM:
    pytest.skip("no Chromium is installed: apt-get install chromium", allow_module_level=True)

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.filterwarnings("default")
LESSON = "The grellip sings in spring, and the miller keeps the coins in a blue jar. " * 4


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    run = os.environ.get("PAGE_RUN")  # for pictures: a model that has learned something
    if not run:
        run = tmp_path_factory.mktemp("runs") / "small"
        run.mkdir()
        config = Config(width=16, layers=3, heads=2, segment=16, hidden=16, chunks=(1, 4), memory_chunk=8,
                        projection_chunk=8, learn_rate=2.0)
        hope.save(run / "checkpoint.npz", Hope(config, np.random.default_rng(0)))
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "apps.serve", run, "--port", str(port)], cwd=ROOT)
    found = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(found + "health").close()
                break
            time.sleep(0.1)
        yield found
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=[
            "--no-sandbox", "--host-resolver-rules=MAP *.example.test 127.0.0.1"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, url):
    """A page that complains about nothing and fetches nothing from elsewhere."""
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    opened, complaints = context.new_page(), []
    opened.on("console", lambda message: complaints.append(message.text)
              if message.type == "error" and "status of 429" not in message.text else None)  # one test brings it about
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda request: complaints.append(request.url)
              if not request.url.startswith((url, "data:")) else None)
    opened.route("**/v1/chat/completions", lambda route: route.continue_(  # the same answers every time
        post_data=json.dumps({**route.request.post_data_json, "seed": 4})))
    opened.goto(url)
    opened.wait_for_selector("#about:has-text('parameters')")
    yield opened
    assert complaints == []
    context.close()


def finished(page) -> None:
    page.wait_for_selector("#send:not([disabled])", timeout=120_000)


def test_what_is_said_is_answered_and_its_surprise_and_drift_are_shown(page):
    page.fill("#message", "hello é")
    page.press("#message", "Enter")
    finished(page)
    assert page.inner_text(".message:first-child .text") == "hello é"
    assert page.locator(".message:last-child .text span").count() > 3
    assert page.locator("#curve polyline").count() == 2 and "bits per byte" in page.inner_text("#mean")
    assert "memory" in page.inner_text("#drift")
    assert page.locator("#raster rect").count() == 0  # learning is off


def test_with_learning_on_levels_move_and_a_reset_forgets(page):
    page.check("#learn")
    page.fill("#message", "remember " * 20)
    page.click("#send")
    finished(page)
    fast = page.locator("#raster rect[y='3']").count()
    assert fast > page.locator("#raster rect[y='23']").count() > 0  # the slow level moves less often
    assert "bytes learned" in page.inner_text("#session")
    page.click("#reset")
    finished(page)
    page.wait_for_selector("#session:has-text('nothing learned yet')")
    assert page.inner_text("#log") == "" and page.locator("#raster rect").count() == 0


def test_a_lesson_is_read_with_fewer_bits_the_second_time(page):
    page.fill("#paste", LESSON)
    page.click("#teach")
    finished(page)
    first, second, *off = [float(cell) for cell in page.locator("#result td").all_inner_texts()]
    assert second < first and second < min(off)
    page.click("#readings summary")
    assert page.inner_text("#again").split() == LESSON.split()
    page.click("#reset")
    finished(page)


def test_a_stopped_answer_stays_and_the_next_one_can_be_asked(page):
    page.evaluate("""() => new MutationObserver((_, observer) => {
        if (!document.querySelector('.message:last-child .text span')) return;
        observer.disconnect();
        document.getElementById('stop').click();
    }).observe(document.getElementById('log'), {childList: true, subtree: true})""")
    page.fill("#message", "tell me more")
    page.click("#send")
    finished(page)
    assert page.inner_text("#problem") == "" and 0 < page.locator(".message:last-child .text span").count() < 100
    page.fill("#message", "hello")
    page.press("#message", "Enter")
    finished(page)
    assert page.locator(".message").count() == 4


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


def test_what_the_server_refuses_is_said_and_the_message_is_not_lost(page):
    page.route("**/v1/chat/completions", lambda route: route.fulfill(
        status=429, content_type="application/json", body='{"error": {"message": "too many", "type": "x"}}'))
    page.fill("#message", "hello")
    page.press("#message", "Enter")
    page.wait_for_selector("#problem:has-text('too many')")
    assert page.input_value("#message") == "hello"


def test_everything_is_reached_with_the_keyboard_and_has_a_name(page):
    page.focus("#learn")
    page.keyboard.press("Space")
    assert page.is_checked("#learn")
    seen = []
    for _ in range(8):
        seen.append(page.evaluate("() => document.activeElement.id"))
        page.keyboard.press("Tab")
    assert [name for name in seen if name] == ["learn", "reset", "log", "message", "send", "paste", "teach"]
    for role, name in (("switch", "Learning"), ("button", "Send"), ("log", "Conversation"), ("textbox", "Message"),
                       ("region", "Chat"), ("heading", "Surprise")):
        assert page.get_by_role(role, name=name, exact=True).count() == 1, (role, name)
    assert page.get_by_role("img").count() == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width, height", [(1280, 860), (390, 844)])
def test_it_fits_a_desk_and_a_phone_and_can_be_read_in_light_and_dark(page, scheme, width, height):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": height})
    page.check("#learn")
    page.fill("#message", "What is a class in Python?")
    page.press("#message", "Enter")
    finished(page)
    page.fill("#paste", LESSON)
    page.click("#teach")
    finished(page)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    style = "([box, name]) => getComputedStyle(document.querySelector(box))[name]"
    assert contrast(page.evaluate(style, ["#log", "color"]), page.evaluate(style, ["#talk", "backgroundColor"])) > 7
    if shots := os.environ.get("PAGE_SHOTS"):
        page.evaluate("() => window.scrollTo(0, 0)")
        page.screenshot(path=f"{shots}/page-{'phone' if width < 500 else 'desk'}-{scheme}.png", full_page=width < 500)
    page.click("#reset")
    finished(page)


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours rgb(r, g, b), by WCAG."""
    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour[4:-1].split(",")]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
