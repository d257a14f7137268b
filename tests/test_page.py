"""The page in a real browser: searched, clicked, watched and read.

`make test-page` installs Chromium where it is missing. Pictures of the page are kept in the folder
that PROMPTSWITCH_SCREENSHOTS names, if it names one.
"""

import os
import re
import shutil
import sys
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import LIGHTS
from serving import NAMES
from serving import Lights
from serving import jpeg

from promptswitch_nb.answers import make_app
from promptswitch_nb.serve import listening

playwright = pytest.importorskip("playwright.sync_api")
NAMED = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMED)), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: make test-page installs it"),
    pytest.mark.skipif(sys.platform != "linux", reason="names that are no UTF-8"),
]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
TOKEN = "a-token-of-many-letters"
SHOTS = os.environ.get("PROMPTSWITCH_SCREENSHOTS")

# What the picture of the video shows now: the colour in its middle.
PIXEL = """() => {
  const video = document.querySelector("video"), canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [1, 1];
  const context = canvas.getContext("2d");
  context.drawImage(video, 0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
}"""

# Let the video play on for a moment from where it began, and pause it in the page itself: whoever
# asks from outside may come late.
PAUSE_SOON = """() => {
  const over = new AbortController(), { signal } = over;
  let began = Infinity;
  window.wasPaused = false;
  video.addEventListener("playing", () => { began = video.currentTime; }, { signal });
  video.addEventListener("timeupdate", () => {
    if (video.currentTime <= began + 0.1) return;
    over.abort();
    video.addEventListener("pause", () => { window.wasPaused = true; }, { once: true });
    video.pause();
  }, { signal });
}"""

# Every piece of text that can be seen, with its colour, and the grounds that lie behind it.
TEXTS = """() => {
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode());) {
    const element = node.parentElement, box = element.getBoundingClientRect();
    const text = node.data.trim().slice(0, 30), { color } = getComputedStyle(element);
    if (!text || !element.checkVisibility() || box.width < 2 || element.closest(".quiet")) continue;
    const grounds = [];
    for (let e = element; e; e = e.parentElement) grounds.push(getComputedStyle(e).backgroundColor);
    found.push({ text, color, grounds });
  }
  return found;
}"""


# What is wider than the screen.
WIDER = """() => document.documentElement.scrollWidth <= innerWidth ? []
  : [...document.querySelectorAll("body *")]
    .filter((e) => e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.tagName + e.id)"""

# What a reader of the page aloud would have no name for.
NAMELESS = """() => [...document.querySelectorAll("button, input, select, [role=slider]")]
  .filter((e) => e.checkVisibility())
  .filter((e) => !(e.ariaLabel || e.textContent.trim() || e.labels?.length || e.title))
  .map((e) => e.outerHTML)"""


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Lights:
    """Make a few videos with difficult names."""
    return Lights(tmp_path_factory.mktemp("lights"))


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """Start Chromium."""
    assert os.sched_getscheduler(0) == os.SCHED_OTHER, "see ordinary_priority in conftest.py"
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def url(index) -> Iterator[str]:
    """Serve the videos."""
    with listening(make_app(index)) as url:
        yield url


@pytest.fixture
def page(browser, url) -> Iterator:
    """Open the page; at the end nothing may have gone wrong, and nobody else been asked."""
    page = browser.new_page(viewport=dict(width=1280, height=800))
    complaints, asked = [], []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    page.expected = []  # complaints that a test provokes
    yield page
    page.close()
    complaints = [c for c in complaints if not any(re.search(e, c) for e in page.expected)]
    assert not complaints
    assert all(address.startswith((url, "data:", "blob:")) for address in asked), asked


def search(page, query: str) -> None:
    """Type a query."""
    page.fill("#q", query)
    page.press("#q", "Enter")
    page.wait_for_selector(".card")


def until(page, condition: str, seconds: float = 15) -> None:
    """Wait for an expression of JavaScript; the page's policy forbids Playwright's own way."""
    for _ in range(int(seconds * 20)):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never: {condition}")


def light(page) -> str:
    """Name the light that the player shows."""
    pixel = page.evaluate(PIXEL)
    far = {n: sum(abs(a - b) for a, b in zip(pixel, rgb)) for n, rgb in LIGHTS.items()}
    name = min(far, key=far.get)
    assert far[name] < 60, pixel
    return name


def watched(page, start: Callable[[], None]) -> tuple[float, str]:
    """Start a video, which is paused soon; return the second that the page tells, and the light."""
    page.evaluate(PAUSE_SOON)
    start()
    until(page, "wasPaused && video.paused && !video.seeking && video.readyState > 2")
    assert page.evaluate("video.currentTime") > 0.1
    return page.evaluate("place()"), light(page)


def keep(page, name: str) -> None:
    """Keep a picture of the page for the one who wants to see it."""
    if SHOTS:
        Path(SHOTS).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(SHOTS) / f"{name}.png")


def test_a_search_is_typed_a_card_clicked_and_the_right_second_plays(page):
    search(page, "green")
    assert page.inner_text("#summary").startswith("24 results in 8 videos")
    assert page.inner_text(".card .name") == "plain.mp4"
    assert page.inner_text(".card .span") == "0:02–0:03"
    until(page, "document.querySelector('.thumb img').naturalWidth == 160")
    second, colour = watched(page, lambda: page.click(".thumb"))
    assert 2 <= second < 3.5 and colour == list(LIGHTS)[int(second) % 4]
    assert page.inner_text("#clock") == f"0:{int(second):02} / 0:08"


@pytest.mark.parametrize("file", [*[f"v{n}" for n in range(len(NAMES))], "avi", "mkv"])
def test_every_file_plays_whatever_its_name_and_kind(page, index, file):
    search(page, "blue")
    number = page.evaluate(f"state.hits.findIndex((h) => h.file === '{file}' && h.start === 3)")
    second, colour = watched(page, lambda: page.click(f".thumb >> nth={number}"))
    assert 2.9 <= second < 4.5 and colour == list(LIGHTS)[int(second + 0.05) % 4]
    converted = file in ("avi", "mkv")
    assert page.inner_text("#way").startswith("Converted on the fly") == converted
    page.evaluate(PAUSE_SOON)  # a new stream plays on, a file stays paused
    page.evaluate("seek(6.2)")
    until(page, "video.paused && video.readyState > 2 && place() >= 5 && !video.seeking")
    assert light(page) == list(LIGHTS)[int(page.evaluate("place()") + 0.05) % 4]


def test_names_are_text(page, index):
    search(page, "red")
    names = page.locator(".card .name").all_inner_texts()
    assert any("<b onclick=x>bold <img src=x onerror=alert(1)>" in name for name in names)
    assert page.evaluate("document.querySelectorAll('.card b, .card img[src=x]').length") == 0


def test_a_video_that_the_browser_refuses_is_converted(page, index, tmp_path):
    """A file that says it is fine and is not: the player asks for another way."""
    page.route(
        "**/video/v0", lambda route: route.fulfill(body=b"x" * 999, content_type="video/mp4")
    )
    search(page, "green")
    second, colour = watched(page, lambda: page.click(".thumb"))
    assert colour == list(LIGHTS)[int(second + 0.05) % 4] and 1 < second < 4
    assert page.inner_text("#way") == "Converted on the fly: the browser does not play it."


def test_a_video_that_is_gone_is_said_to_be(page, index):
    page.expected = ["404"]
    search(page, "green")
    path = index.paths.pop("v0")
    try:
        page.click(".thumb")
        page.wait_for_selector("#trouble:not([hidden])")
        assert "no longer there" in page.inner_text("#trouble")
    finally:
        index.paths["v0"] = path


def test_everything_from_the_keyboard(page):
    focused = "document.activeElement.getAttribute('aria-label') || document.activeElement.id"
    page.keyboard.press("Escape")
    assert page.evaluate(focused) != "q"
    page.keyboard.press("/")
    assert page.evaluate(focused) == "q"
    page.keyboard.type("red")
    page.keyboard.press("Enter")
    page.wait_for_selector(".card")
    page.keyboard.press("ArrowDown")
    assert page.evaluate(focused).startswith("Play plain.mp4, 0:00–0:01")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(focused).startswith("Play plain.mp4, 0:04–0:05")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    assert page.evaluate(focused).startswith("Play plain.mp4, 0:04–0:05")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    second, colour = watched(page, lambda: page.keyboard.press("Enter"))
    assert 4 <= second < 5.5 and colour == list(LIGHTS)[int(second) % 4]
    page.keyboard.press(" ")
    until(page, "!video.paused")
    page.keyboard.press(" ")
    until(page, "video.paused")
    page.keyboard.press("w")
    page.wait_for_selector("#why:not([hidden])")
    page.focus("#line")
    page.keyboard.press("Home")
    until(page, "place() < 0.1")
    page.keyboard.press("ArrowRight")
    until(page, "Math.abs(place() - 5) < 0.1")
    page.keyboard.press("Escape")
    assert page.is_hidden("#player")
    assert page.evaluate(focused).startswith("Play plain.mp4, 0:04–0:05")
    page.keyboard.press("?")
    assert page.is_visible("#help")
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowUp")
    assert page.evaluate(focused) == "q"


def test_what_needs_time_changes_its_place(page):
    search(page, "red")
    page.click("text=reversed")
    page.wait_for_selector(".moved")
    assert page.inner_text(".card .name") != ""
    assert "change places" in page.inner_text("#summary")
    assert page.inner_text(".moved >> nth=0") == "▲ 2"
    page.click("text=shuffled")
    until(page, "document.querySelector('#summary').textContent.startsWith('No result changes')")
    page.click("text=in order")
    until(page, "!document.querySelector('.moved')")


def test_similar_why_and_the_way_back(page):
    search(page, "red")
    watched(page, lambda: page.click(".thumb"))
    page.click("#why-open")
    page.wait_for_selector("#why:not([hidden])")
    assert page.locator("#bars button").count() == 4
    assert page.inner_text("#words span >> nth=0").startswith("red")
    page.click("#bars button >> nth=3")
    until(page, "Math.abs(place() - 0.75) < 0.1")
    page.click("#similar")
    until(page, "document.querySelector('#summary').textContent.includes('like 0:00')")
    assert page.is_hidden("#motion")
    page.go_back()
    until(page, "location.hash === '#q=red' && document.querySelector('#motion').hidden === false")
    search(page, "blue")
    page.go_back()
    until(
        page, "state.asked.given.get('q') === 'red' && document.querySelector('#q').value === 'red'"
    )


def test_filters_are_sent_and_kept_in_the_address(page, index, url):
    search(page, "red")
    page.click("#filters-open")
    page.fill("[name=path]", "holidays/*")
    page.check("[name=per_video]")
    page.uncheck("[name=dedupe]")
    page.fill("[name=min_confidence]", "0.5")
    page.press("[name=min_confidence]", "Enter")
    options = dict(path="holidays/*", per_video=True, dedupe=False, min_confidence=0.5)
    for _ in range(300):
        if index.asked[-1] == ("red", 24, options):
            break
        page.wait_for_timeout(50)
    assert index.asked[-1] == ("red", 24, options)
    keep(page, "filters")
    index.asked.clear()
    page.reload()
    page.wait_for_selector(".card")
    assert index.asked[-1] == ("red", 24, options)


def test_nothing_like_that_and_mistakes_are_said(page):
    page.expected = ["400"]
    search(page, "a zebra")
    assert page.inner_text("#note") == "Nothing like that is here."
    page.fill("#q", '"dog')
    page.press("#q", "Enter")
    until(page, "document.querySelector('#note').textContent.includes('never closed')")
    assert page.evaluate("document.querySelector('#note').getAttribute('role')") == "alert"
    assert page.locator(".card").count() == 0


def test_a_picture_is_searched_for(page, index):
    buffer = jpeg(LIGHTS["yellow"])
    page.set_input_files("#picture", dict(name="x.jpg", mimeType="image/jpeg", buffer=buffer))
    page.wait_for_selector(".card")
    assert page.inner_text(".card .span") == "0:01–0:02"
    until(page, "document.querySelector('#picture-preview').naturalWidth == 160")
    page.click("#picture-drop")
    assert page.is_hidden("#picture-chip")


def test_the_status_of_a_running_index(page, index):
    until(page, "document.querySelector('#status-text').textContent === '8 videos'")
    keep(page, "welcome")
    index.running = True
    page.evaluate("showStatus()")
    until(page, "document.querySelector('#status-text').textContent.includes('3 of 8')")
    page.click("#status")
    assert r"bad \xff\n.mp4" in page.inner_text("#skipped")
    keep(page, "status")
    index.running = False


def rgba(colour: str) -> tuple[float, ...]:
    """Read a computed colour."""
    parts = [float(part) for part in re.findall(r"[\d.]+", colour)]
    if colour.startswith("color(srgb"):
        parts = [255 * part for part in parts[:3]] + parts[3:]
    return (*parts[:3], parts[3] if len(parts) > 3 else 1.0)


def over(top: tuple, ground: tuple) -> tuple:
    """Lay a colour over an opaque one."""
    return tuple(t * top[3] + g * (1 - top[3]) for t, g in zip(top[:3], ground))


def ratio(one: tuple, other: tuple) -> float:
    """Compute the contrast ratio of WCAG 2.2."""

    def luminance(colour):
        parts = [part / 255 for part in colour]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(part * weight for part, weight in zip(linear, (0.2126, 0.7152, 0.0722)))

    high, low = sorted([luminance(one), luminance(other)], reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_themes_can_be_read(page, scheme):
    page.emulate_media(color_scheme=scheme)
    search(page, "a red light")
    watched(page, lambda: page.click(".thumb >> nth=1"))
    page.keyboard.press("w")
    page.wait_for_selector("#why:not([hidden])")
    page.click("text=reversed")
    page.wait_for_selector(".moved")
    page.click("#filters-open")
    page.mouse.move(0, 0)
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    until(page, "document.getAnimations().length === 0")
    texts = page.evaluate(TEXTS)
    keep(page, scheme)
    assert len(texts) > 60
    for text in texts:
        ground = (255, 255, 255) if scheme == "light" else (0, 0, 0)
        for layer in reversed(text["grounds"]):
            ground = over(rgba(layer), ground)
        found = ratio(over(rgba(text["color"]), ground), ground)
        assert found >= 4.5, f"{text['text']!r}: {found:.2f}"


def test_the_theme_can_be_chosen_and_is_kept(page):
    ground = "getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="light")
    usual = page.evaluate(ground)
    page.click("#theme")
    assert page.evaluate(ground) == usual
    page.click("#theme")
    dark = page.evaluate(ground)
    assert dark != usual
    page.reload()
    assert page.evaluate(ground) == dark
    page.click("#theme")
    assert page.evaluate(ground) == usual


@pytest.mark.parametrize("width", [320, 375, 768])
def test_small_screens(page, width):
    page.set_viewport_size(dict(width=width, height=720))
    search(page, "red")
    keep(page, f"results at {width}")
    watched(page, lambda: page.click(".thumb >> nth=2"))
    assert page.evaluate(WIDER) == []
    box = page.locator("video").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width and 0 <= box["y"] < 720 / 2
    keep(page, f"player at {width}")
    page.click("#filters-open")
    assert page.evaluate(WIDER) == []
    page.click("#help-open")
    keep(page, f"help at {width}")


def test_everything_has_a_name(page):
    search(page, "red")
    page.click(".thumb")
    nameless = page.evaluate(NAMELESS)
    assert not nameless
    assert page.get_attribute("#summary", "aria-live") == "polite"
    assert page.get_attribute("html", "lang") == "en"


def test_the_token(browser, index):
    with listening(make_app(index, token=TOKEN)) as url:
        context = browser.new_context()
        page = context.new_page()
        page.goto(url)
        page.wait_for_selector("#login[open]")
        page.fill("#token", "wrong")
        page.press("#token", "Enter")
        until(page, "document.querySelector('#login-text').textContent.includes('wrong')")
        page.fill("#token", TOKEN)
        page.press("#token", "Enter")
        until(page, "!document.querySelector('#login').open")
        search(page, "red")
        assert watched(page, lambda: page.click(".thumb"))[1] == "red"
        context.close()

        context = browser.new_context()
        page = context.new_page()
        page.goto(f"{url}/#token={TOKEN}")
        until(page, "document.querySelector('#status-text').textContent === '8 videos'")
        assert TOKEN not in page.url and page.is_hidden("#login")
        context.close()
