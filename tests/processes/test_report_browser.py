"""The report in headless Chromium, which is controlled over a pipe. Skipped if Chromium is not installed."""

import base64
import fcntl
import io
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_up_runs import PROMPTS, make_run, make_sweep
from PIL import Image

from dpdmd.report.__main__ import main

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe"),
    "--host-resolver-rules=MAP * ~NOTFOUND",  # no request leaves the machine
)
TIMEOUT = 60  # seconds per answer
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install the package chromium")


class Browser:
    """One tab, controlled by the DevTools protocol: JSON messages that end with a zero byte, on descriptors 3 and 4."""

    def __init__(self, folder: Path):
        (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
        # Above 9, so that moving them to 3 and 4 overwrites none of them.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs_in, theirs_out)]
        command = ["bash", "-c", f'exec "$@" 3<&{ends[0]} 4>&{ends[1]}', "bash", CHROMIUM, *FLAGS]
        with (folder / "chromium.log").open("w") as log:
            self.process = subprocess.Popen(
                [*command, f"--user-data-dir={folder / 'profile'}", "about:blank"],
                pass_fds=ends, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        for end in (theirs_in, theirs_out, *ends):
            os.close(end)
        self.reading, self.writing = ours_in, ours_out
        self.waiting, self.events, self.sent = b"", [], 0
        self.session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(TIMEOUT)
        os.close(self.reading)
        os.close(self.writing)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self.waiting:
            ready, _, _ = select.select([self.reading], [], [], TIMEOUT)
            assert ready, "Chromium does not answer"
            part = os.read(self.reading, 1 << 20)
            assert part, "Chromium has ended"
            self.waiting += part
        message, _, self.waiting = self.waiting.partition(b"\0")
        return json.loads(message)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return the result of a command; events that arrive before it are stored."""
        self.sent += 1
        message = {"id": self.sent, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.writing, data) :]
        while True:
            answer = self._receive()
            if answer.get("id") == self.sent:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def open(self, page: Path) -> None:
        self.call("Page.navigate", url=page.as_uri())
        self.until("document.readyState === 'complete' && location.protocol === 'file:'")

    def value(self, script: str) -> Any:
        """Return the value of an expression in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, script: str) -> None:
        end = time.monotonic() + TIMEOUT
        while not self.value(script):
            assert time.monotonic() < end, script
            time.sleep(0.02)

    def click(self, selector: str) -> None:
        """Click the middle of an element with the mouse."""
        place = self.value(
            f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView({{block: 'center'}}); "
            "const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def press(self, key: str, code: int) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def screenshot(self) -> Image.Image:
        data = self.call("Page.captureScreenshot", format="png")["data"]
        return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")

    def size(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def errors(self) -> list[Any]:
        """Return all console messages, exceptions and log entries."""
        kinds = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        return [event["params"] for event in self.events if event.get("method") in kinds]

    def requests(self) -> list[str]:
        """Return every address that the page requested."""
        sent = [event for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    runs = [make_run(folder / "first", steps=18), make_run(folder / "second", shift=0.1, k_anchor=7)]
    out = folder / "report.html"
    assert main([*map(str, runs), "--out", str(out)]) == 0
    return out


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    opened = Browser(tmp_path)
    yield opened
    opened.close()


def test_the_page_works_and_sends_no_request(browser, page):
    """Slider, enlarged images, axes and legend work with mouse and keys, without an error or a request."""
    browser.size(1280, 900)
    browser.open(page)
    assert browser.value("[...document.images].filter(i => i.src).every(i => i.complete && i.naturalWidth > 0)")
    assert browser.value("document.querySelectorAll('.drawing svg').length") > 8
    assert len(browser.screenshot().getcolors(1 << 24)) > 50

    shown = "['sheet0-run0', 'sheet0-run1', 'sheet0-teacher0'].map(id => document.getElementById(id).src)"
    labels = "[...document.querySelectorAll('.prompt .at')].slice(0, 2).map(e => e.textContent)"
    last = browser.value(shown)
    assert browser.value(labels) == ["step 18", "step 12"]  # the shorter run shows its last step
    browser.click("#step")  # the middle of steps 0, 6, 12, 18
    browser.value("document.getElementById('step').focus()")
    browser.press("Home", 36)
    browser.until("document.getElementById('step-shown').textContent === '0'")
    first = browser.value(shown)
    assert first[0] != last[0] and first[1] != last[1] and first[2] == last[2]
    assert browser.value(labels) == ["step 0", "step 0"]
    assert browser.value("document.getElementById('step').getAttribute('aria-valuetext')") == "step 0"
    browser.press("ArrowRight", 39)
    browser.until("document.getElementById('step-shown').textContent === '6'")
    assert browser.value(shown)[0] not in (first[0], last[0])

    opened, caption = "document.getElementById('large').open", "document.getElementById('large-caption').textContent"
    assert not browser.value(opened)
    browser.click(".sheet")
    browser.until(opened)
    assert browser.value(caption) == f"teacher: “{PROMPTS[0]}”"
    assert browser.value("document.getElementById('large-image').src") == first[2]
    browser.press("ArrowRight", 39)
    browser.until(f"({caption}).startsWith('first, step 6: ')")
    browser.press("ArrowLeft", 37), browser.press("ArrowLeft", 37)
    browser.until(f"({caption}).startsWith('second, step 6: ')")
    browser.press("Escape", 27)
    browser.until(f"!{opened}")

    visible = "[...document.querySelectorAll('#planes .drawing')].filter(e => e.offsetParent).length"
    assert browser.value(visible) == 2  # two diversities against one preference
    faded = "getComputedStyle(document.getElementById('score0-mean-run0')).opacity"
    assert browser.value(faded) == "1"
    browser.click(".chip[data-run=run0]")
    browser.until(f"Number({faded}) < .1")
    assert browser.value("document.querySelector('.chip[data-run=run0]').getAttribute('aria-pressed')") == "false"
    assert browser.value("getComputedStyle(document.getElementById('score0-mean-run1')).opacity") == "1"

    assert browser.errors() == []
    requests = browser.requests()
    assert page.as_uri() in requests and [url for url in requests if not url.startswith(("data:", page.as_uri()))] == []


def test_the_page_fits_a_phone_and_paper(browser, page):
    """The page is not wider than 360 pixels. Without scripts, it shows all images."""
    browser.size(360, 740)
    browser.open(page)
    assert browser.value("document.documentElement.scrollWidth") <= 360
    assert browser.value("[...document.querySelectorAll('.drawing svg')].every(e => e.clientWidth <= 360)")
    assert len(base64.b64decode(browser.call("Page.printToPDF")["data"])) > 10_000
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(page)
    assert browser.value("document.querySelectorAll('.prompt img').length") == 4 * 3
    assert browser.errors() == []


@pytest.mark.parametrize("width", [1280, 390, 360])
def test_many_runs_with_long_names_fit(browser, tmp_path, width):
    """The page is not wider than the screen, and the legend does not cover the slider."""
    runs = [make_run(tmp_path / f"sd35m_t30_1024_lr1e5_4nfe_anchor5_seed_{n}", shift=n / 20) for n in range(8)]
    out = tmp_path / "report.html"
    assert main([*map(str, runs), "--out", str(out)]) == 0
    browser.size(width, 900)
    browser.open(out)
    assert browser.value("document.documentElement.scrollWidth") <= width
    browser.value("document.querySelectorAll('.prompt')[1].scrollIntoView()")
    edges = "['.legend', '.slide'].map(name => document.querySelector(name).getBoundingClientRect())"
    browser.until(f"{edges}[1].top < 200")  # both stick
    assert browser.value(f"{edges}[0].top") == 0
    assert browser.value(f"{edges}[1].top - {edges}[0].bottom") > -1
    assert browser.errors() == []


@pytest.mark.parametrize("width", [1280, 360])
def test_a_sweep_fits(browser, tmp_path, width):
    """The table scrolls in itself, and the plane and the images of training shrink to the screen."""
    root = make_sweep(tmp_path / "sweep", every=0, images=False, process_image=True)
    assert main([str(root)]) == 0
    browser.size(width, 900)
    browser.open(root / "report.html")
    assert browser.value("document.documentElement.scrollWidth") <= width
    sizes = browser.value("[...document.querySelectorAll('.whole img')].map(i => [i.naturalWidth, i.clientWidth])")
    assert len(sizes) == 5 and all(loaded > 0 and 100 < shown <= width for loaded, shown in sizes)
    assert browser.errors() == [] and [url for url in browser.requests() if url.startswith("http")] == []


def test_errors_and_requests_are_seen(browser, tmp_path):
    """A page with an error and a request has both, so the tests above can fail."""
    bad = tmp_path / "bad.html"
    bad.write_text("<img src='http://127.0.0.1:9/x.png'><script>console.error('x'); undefined_name()</script>")
    browser.open(bad)
    browser.until("document.images[0].complete")
    assert any("127.0.0.1" in url for url in browser.requests())
    assert len(browser.errors()) >= 2
