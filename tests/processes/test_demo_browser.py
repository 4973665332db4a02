"""The demo as a process, used in headless Chromium: by keyboard, by two users at once, and with hostile prompts."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from chromium import Browser
from processes import cpu_environment

pytestmark = pytest.mark.skipif(find_spec("gradio") is None, reason="pip install -e '.[demo]'")
ROOT = Path(__file__).parents[2]
TIMEOUT = 120
IMAGES = "[...document.querySelectorAll('.images img')].map(e => e.src)"
NAME = "e.getAttribute('aria-label') || e.closest('label')?.querySelector('span').innerText || e.innerText"
FOCUS = f"(e => ({NAME}).trim())(document.activeElement)"
STATUS = "document.getElementById('status').innerText.trim()"
# gradio builds the page twice: it is ready when its field has been there for half a second.
READY = """(() => {
    const field = document.querySelector('textarea');
    if (field !== window.field) [window.field, window.since] = [field, Date.now()];
    return field !== null && Date.now() - window.since > 500 && document.querySelectorAll('.model').length === 2;
})()"""


class Proxy:
    """A proxy for every host, which counts the connections and answers none of them."""

    def __init__(self):
        self.server = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.server.getsockname()[1]}"
        self.connections = 0
        threading.Thread(target=self._count, daemon=True).start()

    def _count(self) -> None:
        while True:
            connection, _ = self.server.accept()
            self.connections += 1
            connection.close()


class Demo:
    """The program, with its log and its address."""

    def __init__(self, run: Path, folder: Path):
        self.proxy, self.log = Proxy(), folder / "log.txt"
        names = ("http_proxy", "https_proxy", "all_proxy")
        proxies = {name: self.proxy.address for each in names for name in (each, each.upper())}
        environment = {
            **cpu_environment(),
            **proxies,
            "GRADIO_ANALYTICS_ENABLED": "True",
            "TMPDIR": str(folder / "tmp"),
        }
        (folder / "tmp").mkdir()
        self.temporary = folder / "tmp"
        command = [sys.executable, "-m", "dpdmd.demo", "--model", str(run), "--port", "0"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        self.url = self._wait()

    def _wait(self) -> str:
        end = time.monotonic() + TIMEOUT
        while not (found := re.search(r"the page is at (http://127\.0\.0\.1:\d+)", self.log.read_text())):
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()
            time.sleep(0.1)
        return found[1] + "/"


@pytest.fixture(scope="module")
def demo(finished, tmp_path_factory) -> Iterator[Demo]:
    opened = Demo(finished, tmp_path_factory.mktemp("demo"))
    yield opened
    opened.process.terminate()
    assert opened.process.wait(TIMEOUT) == 128 + signal.SIGTERM
    assert "Traceback" not in opened.log.read_text()


@pytest.fixture
def page(browser: Browser, demo: Demo) -> Browser:
    browser.size(1200, 800)
    browser.open(demo.url)
    browser.until(READY)
    return browser


def ask(page: Browser, prompt: str) -> None:
    """Type a prompt and press Enter."""
    page.value("document.querySelector('textarea').focus()")
    page.type(prompt)
    page.press("Enter", 13, "\r")


def tab_to(page: Browser, name: str) -> None:
    """Press Tab, and wait until the element of this name has the focus."""
    page.press("Tab", 9)
    page.until(f"{FOCUS} === {name!r}")


def answer(page: Browser, prompt: str) -> list[str]:
    """Wait for the images of a prompt, the teacher's first, and return them."""
    page.until(f"{STATUS} === {json.dumps(f'Images of {prompt}')}")
    return page.value(IMAGES)


def errors(page: Browser) -> list[object]:
    """Return what the page complained about, without remarks such as that of a field that had the focus already."""
    return [error for error in page.errors() if error.get("entry", {}).get("level") not in ("info", "verbose")]


def test_the_page_is_used_by_keyboard(page, demo):
    """From the prompt, which has the focus: type, Tab to the numbers and the button, Enter; Space enlarges an image."""
    page.until(f"{FOCUS} === 'Prompt (at most 2,000 letters)'")
    page.type("a red circle")
    tab_to(page, "Images")
    page.type("3")
    tab_to(page, "First seed")
    page.type("7")
    tab_to(page, "Generate")
    page.press("Enter", 13, "\r")
    images = answer(page, "a red circle")
    assert len(images) == 6 and len(set(images)) == 6 and all(image.startswith("data:image/png") for image in images)
    assert page.value("[...document.images].every(e => e.complete && e.naturalWidth === 64)")
    captions = page.value("[...document.querySelectorAll('.images figcaption')].map(e => e.innerText)")
    assert captions == ["seed 7", "seed 8", "seed 9"] * 2
    texts = "[...e.querySelectorAll('h2, p')].map(part => part.innerText).join(': ')"
    headings = page.value(f"[...document.querySelectorAll('.model')].map(e => {texts})")
    number = r"\d+\.\d\d s for 3 images · pixel distance 0\.\d{3}"
    assert re.fullmatch(rf"teacher: 4 steps · guidance 3\.5 · {number}", headings[0])
    assert re.fullmatch(rf"run: 2 steps · guidance 1 · {number}", headings[1])
    tab_to(page, "enlarge teacher, seed 7")
    width = "document.querySelector('.images img').getBoundingClientRect().width"
    assert page.value(width) < 200
    page.press(" ", 32, " ")
    page.until(f"{width} > 1000")
    page.press(" ", 32, " ")
    page.until(f"{width} < 200")
    assert errors(page) == []
    others = [url for url in page.requests() if not url.startswith(("data:", "blob:", "about:", demo.url))]
    assert others == [] and demo.proxy.connections == 0


def test_two_users_at_once_get_their_own_images(page, demo, tmp_path):
    (tmp_path / "second").mkdir()
    second = Browser(tmp_path / "second")
    try:
        second.open(demo.url)
        second.until(READY)
        prompts = ["a red circle", "a large blue square"]
        alone = {}
        for prompt in prompts:
            ask(page, prompt)
            alone[prompt] = answer(page, prompt)
        assert not set(alone[prompts[0]]) & set(alone[prompts[1]])
        for turn in (prompts, prompts[::-1]):
            for user, prompt in zip((page, second), turn, strict=True):
                ask(user, prompt)
            for user, prompt in zip((page, second), turn, strict=True):
                assert answer(user, prompt) == alone[prompt]
    finally:
        second.close()


def test_a_request_during_another_is_answered(page):
    """Enter while images of the same user are computed: the last prompt's images are shown in the end."""
    for prompt in ("a red circle", "a blue square", "a green star"):
        ask(page, prompt)
    images = answer(page, "a green star")
    assert len(images) == 8
    time.sleep(1)  # no earlier request replaces them
    assert answer(page, "a green star") == images


@pytest.mark.parametrize(
    "prompt",
    [
        "<img src=x onerror=\"document.title='hacked'\"><b>bold</b></q></p><script>document.title='hacked'</script>",
        "${document.title='hacked'} {{document.title='hacked'}} `+(document.title='hacked')+`",
    ],
)
def test_html_in_a_prompt_is_text(page, prompt):
    elements = "document.querySelectorAll('#status *').length"
    ask(page, "a red circle")
    answer(page, "a red circle")
    before = page.value(elements)
    ask(page, prompt)
    assert len(answer(page, prompt)) == 8
    assert page.value(elements) == before and page.value("document.title") == "DP-DMD demo"
    assert errors(page) == []


def test_a_prompt_of_5000_letters_gets_a_message(page, demo):
    ask(page, "x" * 5000)
    page.until(f"{STATUS} === 'the prompt has 5,000 letters: at most 2,000 are allowed'")
    assert page.value(IMAGES) == []
    ask(page, "x" * 2000)
    assert len(answer(page, "x" * 2000)) == 8
    assert page.value("document.documentElement.scrollWidth") <= 1200
    assert [path for path in demo.temporary.rglob("*") if path.is_file()] == []  # no image or prompt on disk


def test_the_page_fits_a_phone(page):
    page.size(360, 740)
    page.value("document.querySelector('input[type=number]').focus()")
    page.type("16")
    ask(page, "a red circle")
    assert len(answer(page, "a red circle")) == 32
    assert page.value("document.documentElement.scrollWidth") <= 360
