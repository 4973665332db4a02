"""Images that a user gives: which image is of which prompt, from file names, a CSV file, or the order of the files."""

import os
import re
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dpdmd.data.prompt_columns import choose_column, prompts_of_table
from dpdmd.data.prompt_tables import separated_rows
from dpdmd.sampling.image_folder import (
    GRIDS,
    PER_IMAGE,
    PICTURES,
    SAMPLES,
    SHEET,
    SUFFIXES,
    SUMMARY,
    ImageFile,
    is_hidden,
    is_image,
)
from dpdmd.utils.text_files import is_utf8, require_regular
from dpdmd.utils.wording import counted

TABLES = {".csv": ",;\t", ".tsv": "\t"}  # ending -> separators
OTHER_SUFFIXES = (".avif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jxl", ".ppm", ".tga")  # images, but not read
FILE_COLUMNS = ("file", "file_name", "filename", "image", "path")
ADVICE = "give a CSV file with the columns file and prompt as --images"
TRUNCATED = 32  # letters of a name from which it may be the beginning of a prompt: tools cut long names
_OUR_NAME = re.compile(r"(\d+)_(\d+)")
_RELEASE_NAME = re.compile(r"(\d+)")
_NUMBERED_NAME = re.compile(r"(.*?)[ _-]*(?:\d+|\(\d+\))")
_Key = tuple[int, int]  # (prompt index, sample index)


@dataclass(frozen=True)
class GivenImages:
    """The images of --images.

    Attributes:
        note: one line on an assumption about their prompts, for the user to check; "" if their names or a CSV say it.
    """

    images: list[ImageFile]
    note: str = ""


def is_table(path: Path) -> bool:
    """Return whether the value of --images is a CSV or TSV file."""
    return path.suffix.lower() in TABLES and not os.path.isdir(path)  # Path.is_dir raises if a parent is unreadable


def read_table(path: Path, column: str | None = None) -> list[ImageFile]:
    """Read a CSV file of images and their prompts, in the order of its lines; prompts count in the order they appear.

    Paths are relative to the folder of the CSV file. The images beside the listed ones must be listed too.

    Args:
        column: of the prompts; None for the one named prompt, caption or text.

    Raises:
        ValueError: the file cannot be read, has no such columns, names a file that does not exist or twice, or leaves
            out an image; names the line.
    """
    with _explained(path):
        require_regular(path)
        images = _table_images(path, column)
        listed = {os.path.realpath(image.path) for image in images}
        for folder in dict.fromkeys(image.path.parent for image in images):
            beside = _without_sheets(sorted(each for each in folder.iterdir() if _is_any_image(each, folder)))
            if left_out := [each for each in beside if os.path.realpath(each) not in listed]:
                raise ValueError(
                    f"{len(left_out)} images beside those in it are not in it, such as {left_out[0]}; add or move them"
                )
    return images


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Begin the errors of a block with --images and its value.

    Raises:
        ValueError: the block raised it, or `path` or what lies in it cannot be read.
    """
    try:
        yield
    except UnicodeDecodeError:
        raise ValueError(f"--images {path}: is not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        inside = "" if str(error.filename) == str(path) else f"{error.filename} "
        raise ValueError(f"--images {path}: {inside}cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ValueError(f"--images {path}: {error}") from None


def _table_images(path: Path, column: str | None) -> list[ImageFile]:
    rows = separated_rows(path, TABLES[path.suffix.lower()])
    _, header = next(rows, (1, []))
    names = {name.strip().lower(): place for place, name in enumerate(header)}
    file_place = next((names[name] for name in FILE_COLUMNS if name in names), None)
    if file_place is None:
        raise ValueError(f"no column is named {', '.join(FILE_COLUMNS)}; its columns are {', '.join(header) or 'none'}")
    prompt_place = header.index(choose_column(header, column))
    numbers: dict[str, int] = {}  # prompt -> its number
    samples: Counter[str] = Counter()
    lines: dict[str, int] = {}
    images = []
    for line, row in rows:
        prompt = next(iter(prompts_of_table([(line, row[prompt_place], None)], "line", weighted=False)[0]), None)
        file = path.parent / row[file_place].strip()
        if prompt is None:
            raise ValueError(f"line {line} has no prompt")
        try:
            if not file.is_file():
                raise ValueError(f"line {line}: {file}: no such file")
        except OSError as error:  # for example, the name is too long
            raise ValueError(f"line {line}: {file}: cannot be read ({error.strerror})") from None
        if (other := lines.setdefault(os.path.realpath(file), line)) != line:
            raise ValueError(f"lines {other} and {line} name the same file, {file}")
        key = numbers.setdefault(prompt, len(numbers)), samples[prompt]
        samples[prompt] += 1
        images.append(ImageFile(key, prompt, file))
    if not images:
        raise ValueError("names no image")
    return images


def find_images(folder: Path, prompts: Sequence[str], per_prompt: int | None = None) -> GivenImages:
    """Find all images below a folder, and the prompt of each.

    The file 00012_003 is sample 3 of prompt 12, and the file 12 is the only image of prompt 12, as in the authors'
    release. GenEval's 00012/samples/0003 is sample 3 of prompt 12. Files 1 to N are of N prompts, counted from 1. Fewer
    files that begin at 1 are refused: the first or the last image may be the one that is missing.

    If no name has such a form, each image counts as a prompt of its own. With `prompts`, names are compared with the
    prompts; if they name none, the images are taken in their own order, in which 2 comes before 10: the same number
    for each prompt. Hidden files, files of file managers and this program's own sheets do not count.

    Args:
        per_prompt: take the images in their own order whatever their names, this many for each prompt.

    Raises:
        ValueError: no image, a folder that cannot be read, names that contradict each other or `prompts`, or numbers
            of images and prompts that do not fit.
    """
    with _explained(folder):
        if folder.is_file():
            raise ValueError("is a file; give a folder of images, or a CSV file with the columns file and prompt")
        if not folder.is_dir():
            raise ValueError("no such folder")
        paths = _without_sheets(_images_below(folder))
        if odd := next((path for path in paths if not is_utf8(str(path))), None):
            raise ValueError(f"{str(odd)!r}: its name is not UTF-8; rename it")
    if not paths:
        raise ValueError(f"--images {folder}: no image in it ({', '.join(SUFFIXES)})")
    if per_prompt:
        return GivenImages(_in_own_order(folder, paths, prompts, per_prompt))
    keys = [_key(path) for path in paths]
    if None not in keys and len(set(keys)) == len(keys):
        return _by_numbers(folder, paths, keys, prompts)
    if not prompts:
        return GivenImages([ImageFile((index, 0), "", path) for index, path in enumerate(paths)])
    if any(keys):
        raise ValueError(
            f"--images {folder}: which prompt is of which image? {odd_names(paths)}. Name images 00012_003.png "
            f"(prompt 12, sample 3) or 12.png, counting from 0; or give --images_per_prompt, or {ADVICE}"
        )
    return _by_words(folder, paths, prompts)


def _images_below(folder: Path) -> list[Path]:
    """Return the image files below a folder, sorted. Links to folders are not followed.

    Raises:
        OSError: a folder cannot be read, so some images would be left out.
        ValueError: an image has an ending that is not read.
    """

    def stop(error: OSError) -> None:
        raise error

    found = []
    for place, folders, files in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not is_hidden(Path(name))]  # lost+found is readable for root alone
        found += [Path(place) / name for name in files]
    images = sorted(path for path in found if _is_any_image(path, folder))
    if other := [path for path in images if path.suffix.lower() in OTHER_SUFFIXES]:
        raise ValueError(
            f"{counted(len(other), 'image')} with an ending that is not read, such as {other[0]}; save them as PNG, or "
            "move them away"
        )
    return images


def _is_any_image(path: Path, folder: Path) -> bool:
    """Return whether a path is an image, one that is not read included: of another ending, or a link to nowhere."""
    return is_image(path, folder, SUFFIXES + OTHER_SUFFIXES) and (path.is_file() or not path.exists())


def _by_numbers(folder: Path, paths: Sequence[Path], keys: Sequence[_Key], prompts: Sequence[str]) -> GivenImages:
    """Return images whose names have the numbers of their prompts."""
    note = ""
    if prompts and sorted(keys) == [(number, 0) for number in range(1, len(prompts) + 1)]:
        keys = [(number - 1, 0) for number, _ in keys]
        note = f"--images {folder}: the names count from 1: {paths[0].name} is of {prompts[keys[0][0]]!r}"
    elif min(keys)[0] == 1 and max(keys)[0] < len(prompts) and all(path.stem.isdecimal() for path in paths):
        raise ValueError(
            f"--images {folder}: which prompt is of which image? The names begin at 1, and {len(paths)} images of "
            f"{len(prompts)} prompts may count from 0 or from 1; name them from 00000_000.png on (prompt 0, sample 0), "
            f"or {ADVICE}"
        )
    for path, key in zip(paths, keys, strict=True):
        if prompts and key[0] >= len(prompts):
            raise ValueError(
                f"--images {folder}: {path.name} is of prompt {key[0]}, but there are {len(prompts)} prompts, from 0; "
                f"if names do not number the prompts, give --images_per_prompt, or {ADVICE}"
            )
    found = zip(keys, paths, strict=True)
    return GivenImages([ImageFile(key, prompts[key[0]] if prompts else "", path) for key, path in found], note)


def _by_words(folder: Path, paths: Sequence[Path], prompts: Sequence[str]) -> GivenImages:
    """Return images by the prompts in their names, or in their own order if no name is a prompt."""
    numbers = _named_prompts(paths, prompts)
    if set(numbers) == {None}:
        per_prompt, rest = divmod(len(paths), len(prompts))
        if rest:
            raise ValueError(
                f"--images {folder}: which prompt is of which image? {odd_names(paths)}, and {len(paths)} images do "
                f"not divide over {len(prompts)} prompts; {ADVICE}"
            )
        images = _in_own_order(folder, paths, prompts, per_prompt)
        first, last = images[0], images[-1]
        return GivenImages(
            images,
            f"--images {folder}: no name says its prompt, so the images are taken in their order, {per_prompt} for "
            f"each prompt: {first.path.name} is of {first.prompt!r}, {last.path.name} of {last.prompt!r}",
        )
    if None in numbers:
        raise ValueError(
            f"--images {folder}: {paths[numbers.index(None)].name} is named after no prompt, as other images are; "
            f"rename it, or {ADVICE}"
        )
    samples: Counter[int] = Counter()
    images = []
    for path, number in sorted(zip(paths, numbers, strict=True), key=lambda pair: natural_order(pair[0])):
        images.append(ImageFile((number, samples[number]), prompts[number], path))
        samples[number] += 1
    return GivenImages(images)


def _named_prompts(paths: Sequence[Path], prompts: Sequence[str]) -> list[int | None]:
    """Return the number of the prompt that each file is named after, with or without a number behind it; else None."""
    known: dict[str, int] = {}
    for number, prompt in enumerate(prompts):
        known.setdefault(_words(prompt), number)
    ordered = sorted(known)

    def find(name: str) -> int | None:
        words = _words(name)
        if words in known or len(words) < TRUNCATED:
            return known.get(words)
        place = bisect_left(ordered, words)
        longer = [each for each in ordered[place : place + 2] if each.startswith(words)]
        return known[longer[0]] if len(longer) == 1 else None

    found = []
    for path in paths:
        number, numbered = find(path.stem), _NUMBERED_NAME.fullmatch(path.stem)
        found.append(find(numbered[1]) if number is None and numbered else number)
    return found


def _words(text: str) -> str:
    """Return the words of a prompt or name alone: file names keep few signs and no case, and macOS splits accents."""
    return " ".join(re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold()))


def _in_own_order(folder: Path, paths: Sequence[Path], prompts: Sequence[str], per_prompt: int) -> list[ImageFile]:
    """Return the images in their natural order, `per_prompt` in a row for each prompt.

    Raises:
        ValueError: the number of images is not that of the prompts times `per_prompt`.
    """
    wanted = len(prompts) * per_prompt
    if (prompts and len(paths) != wanted) or len(paths) % per_prompt:
        these = f"{len(prompts)} prompts have {wanted}" if prompts else "they do not divide"
        raise ValueError(
            f"--images_per_prompt {per_prompt}: there are {len(paths)} images in {folder}, but {these}; give the "
            f"number that fits, or {ADVICE}"
        )
    ordered = enumerate(sorted(paths, key=natural_order))
    keys = [(divmod(place, per_prompt), path) for place, path in ordered]
    return [ImageFile(key, prompts[key[0]] if prompts else "", path) for key, path in keys]


def natural_order(path: Path) -> list[tuple[int, int, str]]:
    """Return a key that sorts numbers in names by value, so that 2 comes before 10."""
    parts = re.split(r"(\d+)", str(path))
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts if part]


def odd_names(paths: Sequence[Path]) -> str:
    """Return a sentence on the first name that has no number, or else on two images with the same number."""
    first: dict[tuple[int, int] | None, Path] = {}
    for path in paths:
        if _key(path) is None:
            return f"{path.name} has no number"
        if (other := first.setdefault(_key(path), path)) != path:
            return f"{other} and {path} have the same number"
    return "each number is there once"


def _without_sheets(paths: Sequence[Path]) -> list[Path]:
    """Return the images without the sheets that `generate` and the root programs write beside numbered images.

    A sheet is grid.png in a folder of numbered images or above GenEval's samples/, or any image in grids/ beside
    pictures/ or a root program's results. If an image beside grid.png has no number, grid.png may be an image like the
    others, and counts.
    """
    grids = {path.parent for path in paths if path.parent.name == GRIDS}
    sheets = {folder for folder in grids if _is_output(folder.parent)}
    images = [path for path in paths if path.parent not in sheets]
    folders: dict[Path, list[Path]] = {}
    for path in images:
        if path.name != SHEET:
            folders.setdefault(path.parent, []).append(path)
    numbered = {folder for folder, members in folders.items() if all(map(_key, members))}
    above = {folder.parent for folder in numbered if folder.name == SAMPLES}
    return [path for path in images if path.name != SHEET or path.parent not in numbered | above]


def _is_output(folder: Path) -> bool:
    """Return whether a root program wrote its images or its results into a folder."""
    return (folder / PICTURES).is_dir() or any((folder / name).is_file() for name in (PER_IMAGE, SUMMARY))


def _key(path: Path) -> tuple[int, int] | None:
    """Return (prompt index, sample index): 00012_003.png, 12.png, or GenEval's 00012/samples/0003.png."""
    if match := _OUR_NAME.fullmatch(path.stem):
        return int(match[1]), int(match[2])
    match, entry = _RELEASE_NAME.fullmatch(path.stem), _RELEASE_NAME.fullmatch(path.parent.parent.name)
    if match and entry and path.parent.name == SAMPLES:
        return int(entry[1]), int(match[1])
    return (int(match[1]), 0) if match else None
