"""The report in headless Chromium. Skipped if Chromium is not installed."""

import base64
from pathlib import Path

import pytest
from made_up_runs import PROMPTS, make_run, make_sweep

from dpdmd.report.__main__ import main


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    runs = [make_run(folder / "first", steps=18), make_run(folder / "second", shift=0.1, k_anchor=7)]
    out = folder / "report.html"
    assert main([*map(str, runs), "--out", str(out)]) == 0
    return out


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
