"""Headless Chromium for tests of pages, controlled over a pipe. Such tests are skipped if it is not installed."""

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
from PIL import Image

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe"),
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",  # no request leaves the machine
)
TIMEOUT = 60  # seconds per answer


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

    def open(self, page: Path | str) -> None:
        """Open a file or an address."""
        url = page.as_uri() if isinstance(page, Path) else page
        self.call("Page.navigate", url=url)
        protocol = url.partition("/")[0]
        self.until(f"document.readyState === 'complete' && location.protocol === {protocol!r}")

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

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press and release a key. `text` is what it types, such as a carriage return for Enter."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=text)

    def type(self, text: str) -> None:
        """Replace the text of the focused element, as a keyboard does."""
        self.value("document.activeElement.select()")
        self.call("Input.insertText", text=text)

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


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium: install the package chromium")
    opened = Browser(tmp_path)
    yield opened
    opened.close()
