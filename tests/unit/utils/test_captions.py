"""Captions: cut to a width, and in a font that has their letters, with or without fonts on the system."""

import subprocess

import pytest
from PIL import Image, ImageDraw, ImageFont

from dpdmd.utils import captions
from dpdmd.utils.captions import caption, default_face, fit_caption

INK = (0, 0, 0)
CODES = "\\u65e5\\u672c"


def written(found):
    return "".join(text for text, _ in found.runs)


@pytest.fixture
def no_fonts(monkeypatch):
    """A system without fonts."""
    monkeypatch.setattr(captions, "_candidates", lambda letter: [])
    monkeypatch.setattr(captions, "_found", [])
    monkeypatch.setattr(captions, "_missing", set())


def test_a_caption_is_cut_where_it_no_longer_fits():
    length = ImageFont.load_default(size=10).getlength
    for text in ("a red circle on a white background, small", "iiiiiiiiiiiiiiiiiiiiiiiii", "WWWWWWWWWWWW"):
        for width in (20, 60, 100, 1000):
            shown = written(fit_caption(text, 10, width))
            if length(text) <= width:
                assert shown == text
                continue
            assert shown.endswith("...") and length(shown) <= width
            longer = text[: len(shown) - 2] + "..."
            assert length(longer) > width


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("日本 cat", f"{CODES} cat"),
        ("قط", "\\u0642\\u0637"),
        ("a \U0001f436!", "a [dog face]!"),
        ("\U0001f469\u200d\U0001f467", "[woman][girl]"),
        ("e\u0301t\u00e9 \u0142", "ete \\u0142"),
        ("it\u2019s \u00bd", "it\u2019s \\xbd"),
        ("bell\x07", "bell\\x07"),
        ("plain", "plain"),
    ],
)
def test_without_fonts_letters_are_spelled_and_no_boxes(no_fonts, text, shown):
    """Every letter that is drawn is in Pillow's own font."""
    found = caption(text, 12)
    assert written(found) == shown
    assert {face for _, face in found.runs} == {default_face(12)}
    box = ImageFont.load_default(size=12).getmask("\U0010ffff")
    for letter in shown.replace(" ", ""):
        mask = ImageFont.load_default(size=12).getmask(letter)
        assert (mask.size, bytes(mask)) != (box.size, bytes(box))


def test_a_long_caption_without_fonts_is_cut(no_fonts):
    found = fit_caption("日本" * 5000, 12, 300)
    assert found.length <= 300 and written(found).startswith(CODES) and written(found).endswith("...")


def test_a_script_without_a_font_is_searched_once(no_fonts, monkeypatch):
    asked = []
    monkeypatch.setattr(captions, "_candidates", lambda letter: asked.append(letter) or [])
    caption("日本語の猫" * 10 + "кот", 12)
    assert asked == ["日", "の", "к"]


def test_a_font_that_has_the_letters_draws_them(no_fonts, monkeypatch):
    """Here a larger default font stands for a font of the system that has what Pillow's lacks."""
    other = captions._Face(ImageFont.load_default(size=17))
    monkeypatch.setattr(captions, "_candidates", lambda letter: [("other.ttf", 0)])
    monkeypatch.setattr(captions, "_face", lambda file, index, size: other)
    monkeypatch.setattr(captions, "_has", lambda face, letter: face == other or letter.isascii())
    found = caption("cat 日本 日, and dog", 12)
    default = default_face(12)
    assert found.runs == (("cat ", default), ("日本 日,", other), (" and dog", default))


@pytest.mark.parametrize("failure", [OSError, subprocess.TimeoutExpired("fc-match", 1), ValueError])
def test_fontconfig_that_fails_is_no_obstacle(monkeypatch, failure):
    def fail(*_, **__):
        raise failure

    monkeypatch.setattr(captions.shutil, "which", lambda name: name)
    monkeypatch.setattr(captions.subprocess, "run", fail)
    monkeypatch.setattr(captions, "_font_files", lambda: ["/nowhere/a.ttf"])
    assert captions._candidates("日") == [("/nowhere/a.ttf", 0)]
    assert captions._face("/nowhere/a.ttf", 0, 12) is None


def test_latin_captions_look_as_pillow_draws_them():
    ours, theirs = (Image.new("RGB", (200, 30), (255, 255, 255)) for _ in range(2))
    caption("A red circle, (small)", 14).draw(ours, (3, 4), INK)
    draw = ImageDraw.Draw(theirs)
    draw.text((3, 4), "A red circle, (small)", INK, font=ImageFont.load_default(size=14))
    assert ours.tobytes() == theirs.tobytes()
