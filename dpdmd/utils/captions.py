"""Captions of images in any script.

Pillow's own font has Latin letters only and draws a box for every other one. Here each run of letters is drawn in a
font of the system that has them. A letter that no font has is written as its code, or as its name if it is an emoji.
"""

import re
import shutil
import subprocess
import unicodedata
from bisect import bisect_right
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, features

Colour = tuple[int, int, int]
_NO_LETTER = "\U0010ffff"  # every font draws its box for this code
_BITMAP_SIZE = 109  # the only size of Noto's colour emoji
_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "/System/Library/Fonts")
_STYLED = re.compile("bold|italic|oblique|mono|serif|light|thin|black|condensed", re.IGNORECASE)
_MAX_FILES = 300  # fonts that are tried without fontconfig
_found: list[tuple[str, int]] = []  # (file, index) of the fonts that a letter was found in


@dataclass(frozen=True)
class _Face:
    """A font at the size of a caption.

    Attributes:
        scale: from the font's pixels to the caption's: below 1 for a font of bitmaps.
    """

    font: ImageFont.FreeTypeFont
    scale: float = 1.0

    def length(self, text: str) -> float:
        return self.font.getlength(text) * self.scale


@cache
def default_face(size: int) -> _Face:
    """Return Pillow's own font."""
    return _Face(ImageFont.load_default(size=size))


@cache
def _face(file: str, index: int, size: int) -> _Face | None:
    """Load a font file. Return None if Pillow cannot."""
    for pixels in (size, _BITMAP_SIZE):
        try:
            return _Face(ImageFont.truetype(file, pixels, index=index), size / pixels)
        except OSError:
            continue
    return None


@cache
def _without_shaping(face: _Face) -> ImageFont.FreeTypeFont:
    """Return the font without raqm, which adds a dotted circle to a mark that stands alone."""
    return face.font.font_variant(layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=4096)
def _has(face: _Face, letter: str) -> bool:
    """Return whether a font has a letter: it draws something, and not its box."""
    font = _without_shaping(face)
    mask, box = font.getmask(letter), font.getmask(_NO_LETTER)
    return letter == " " or (mask.getbbox() is not None and (mask.size, bytes(mask)) != (box.size, bytes(box)))


def _face_of(letter: str, size: int, current: _Face) -> _Face | None:
    """Return a font that has a letter, or None. The one before continues over spaces, punctuation and marks.

    A right-to-left sentence must stay one run, or its words come out in the wrong order.
    """
    continues = current.scale == 1 and not letter.isalnum() and unicodedata.category(letter) != "So"
    candidates = [current, default_face(size)] if continues else [default_face(size), current]
    for face in candidates:
        if _has(face, letter):
            return face
    for file, index in _found:
        if (face := _face(file, index, size)) and _has(face, letter):
            return face
    return _search(_script(letter), letter, size)


def _script(letter: str) -> str:
    """Return the script of a letter, as in its Unicode name; for a symbol its block of 256 codes."""
    name = unicodedata.name(letter, "")
    return name.partition(" ")[0] if name and unicodedata.category(letter) != "So" else hex(ord(letter) >> 8)


_missing: set[str] = set()  # scripts without a font: each search takes a process


def _search(script: str, letter: str, size: int) -> _Face | None:
    """Return a font of the system that has a letter, or None."""
    if script in _missing or unicodedata.category(letter) in ("Cc", "Cs", "Cn", "Co"):
        return None
    for file, index in _candidates(letter):
        face = _face(file, index, size)
        if face and _has(face, letter):
            _found.append((file, index))
            return face
    _missing.add(script)
    return None


def _candidates(letter: str) -> list[tuple[str, int]]:
    """Return (file, index) of fonts that may have a letter: fontconfig's choice, or all files without fontconfig."""
    if shutil.which("fc-match"):
        command = ["fc-match", "--format", "%{file}\t%{index}", f"sans:charset={ord(letter):x}"]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
            file, index = answer.split("\t")
            return [(file, int(index) & 0xFFFF)]  # the upper half chooses an instance of a variable font
        except (OSError, subprocess.SubprocessError, ValueError):
            pass
    return [(file, 0) for file in _font_files()]


@cache
def _font_files() -> list[str]:
    """Return the font files of the system; regular styles of Noto, which has most scripts, first."""
    files = (path for folder in _FOLDERS for path in Path(folder).expanduser().rglob("*.[to]t[fc]"))
    order = sorted(files, key=lambda path: (bool(_STYLED.search(path.name)), "Noto" not in path.name, str(path)))
    return list(map(str, order[:_MAX_FILES]))


@dataclass(frozen=True)
class Caption:
    """A text in runs of one font each. `size` is that of Pillow's font, pixels."""

    size: int
    runs: tuple[tuple[str, _Face], ...]

    @property
    def length(self) -> float:
        """Width in pixels."""
        return sum(face.length(text) for text, face in self.runs)

    def draw(self, sheet: Image.Image, place: tuple[int, int], ink: Colour) -> None:
        """Draw the text on an RGB image, from its upper left corner. All fonts share a base line."""
        base_line = place[1] + default_face(self.size).font.getmetrics()[0]
        draw = ImageDraw.Draw(sheet)
        before: float = 0
        for number, (text, face) in enumerate(self.runs):
            if number:
                before += self.runs[number - 1][1].length(self.runs[number - 1][0])
            if face.scale == 1:
                draw.text((place[0] + before, base_line), text, ink, font=face.font, anchor="ls")
            else:
                _paste_bitmaps(sheet, (round(place[0] + before), place[1]), text, face, ink)


def _paste_bitmaps(sheet: Image.Image, place: tuple[int, int], text: str, face: _Face, ink: Colour) -> None:
    """Draw a font of coloured bitmaps at their own size, and paste it scaled down."""
    size = (max(1, round(face.font.getlength(text))), sum(face.font.getmetrics()))
    drawn = Image.new("RGBA", size)
    ImageDraw.Draw(drawn).text((0, 0), text, ink, font=face.font, embedded_color=True)
    scaled = tuple(max(1, round(side * face.scale)) for side in size)
    drawn = drawn.resize(scaled, Image.Resampling.LANCZOS)
    sheet.paste(drawn, place, drawn)


def caption(text: str, size: int) -> Caption:
    """Return a text without line breaks in fonts that have its letters."""
    if text.isascii() and text.isprintable():
        return Caption(size, ((text, default_face(size)),))
    runs: list[tuple[str, _Face]] = [("", default_face(size))]
    for letter in unicodedata.normalize("NFC", text):
        if _is_invisible(letter):
            if features.check("raqm") and runs[-1][1] != default_face(size):  # otherwise it would be a box
                runs[-1] = (runs[-1][0] + letter, runs[-1][1])
            continue
        face = _face_of(letter, size, runs[-1][1])
        if face is None:
            letter, face = _spelled(letter), default_face(size)
        if face == runs[-1][1]:
            runs[-1] = (runs[-1][0] + letter, face)
        else:
            runs += _next_runs(runs, letter, face, default_face(size))
    return Caption(size, tuple(run for run in runs if run[0]))


def _next_runs(runs: list[tuple[str, _Face]], letter: str, face: _Face, default: _Face) -> list[tuple[str, _Face]]:
    """Return the runs that begin with a letter of another font. Spaces at the end of the last run move to them.

    In a right-to-left run they would be drawn at its left.
    """
    text, before = runs[-1]
    if before == default:
        return [(letter, face)]
    runs[-1] = (text.rstrip(" "), before)
    spaces = text[len(runs[-1][0]) :]
    return [(spaces + letter, face)] if face == default else [(spaces, default), (letter, face)]


def _is_invisible(letter: str) -> bool:
    """Return whether a letter only changes its neighbours: joiners, directions, variations."""
    return unicodedata.category(letter) == "Cf" or "\ufe00" <= letter <= "\ufe0f"


def _spelled(letter: str) -> str:
    """Return the name of an emoji, [dog face], the plain form of a Latin letter, else the code, \\u732b."""
    name = unicodedata.name(letter, "")
    if name.startswith("LATIN ") and (plain := unicodedata.normalize("NFKD", letter)[0]).isascii():
        return plain
    if name and unicodedata.category(letter) in ("So", "Sk"):
        return f"[{name.lower()}]"
    return letter.encode("unicode_escape").decode()


def fit_caption(text: str, size: int, width: int) -> Caption:
    """Return `text` on one line, shortened to `width` pixels."""
    shown = " ".join(text[:width].split())  # a letter takes at least a pixel, and PIL rejects a million letters
    whole = caption(shown, size)
    if len(text) <= width and whole.length <= width:
        return whole
    lengths = range(len(shown) + 1)
    fitting = bisect_right(lengths, width, key=lambda count: caption(f"{shown[:count]}...", size).length)
    return caption(shown[: max(0, fitting - 1)] + "...", size)
