"""Reading prompt files, the prompts of a step, and the files of data/."""

import bz2
import gzip
import importlib.util
import io
import lzma
import pickle
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from dpdmd.data.prompt_files import read_prompts
from dpdmd.data.prompts import PromptWeights, epoch_order, fingerprint, global_samples, prompts_of_step
from dpdmd.shapes import pairs
from dpdmd.shapes.categories import OF_ONE, OF_TWO, category
from dpdmd.shapes.world import ATTRIBUTES, all_captions, parse_caption

ROOT = Path(__file__).parents[3]
SIZES = {
    "prompts_train.txt": 4000,
    "prompts_eval.txt": 200,
    "prompts_eval_16.txt": 16,
    "shapes_train.txt": 509,
    "shapes_eval.txt": 16,
    "shapes_geneval.txt": 80,
    "pairs_train.txt": 2000,
    "pairs_geneval.txt": 96,
}
LETTERS = list("abcdefghij")


def prompt_file(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def make_prompts():
    """scripts/make_prompts.py as a module."""
    spec = importlib.util.spec_from_file_location("make_prompts", ROOT / "scripts" / "make_prompts.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Reading


@pytest.mark.parametrize(
    ("content", "prompts"),
    [
        pytest.param(b"a cat\na dog\n", ["a cat", "a dog"], id="LF"),
        pytest.param(b"a cat\na dog", ["a cat", "a dog"], id="no final line end"),
        pytest.param(b"a cat\r\na dog\r\n", ["a cat", "a dog"], id="CRLF"),
        pytest.param(b"a cat\ra dog\r", ["a cat", "a dog"], id="CR"),
        pytest.param(b"1 - a cat\r\r2 - a dog\n", ["a cat", "a dog"], id="CR before one LF"),
        pytest.param(b"PK is a cat\nBZh\n<html\n", ["PK is a cat", "BZh", "<html"], id="no other kind of file"),
        pytest.param(b"\xef\xbb\xbfa cat\na dog\n", ["a cat", "a dog"], id="byte-order mark"),
        pytest.param(b"\xef\xbb\xbf1 - a cat\r\n\r\n2 - a dog\r\n", ["a cat", "a dog"], id="all that Windows adds"),
        pytest.param(b"\n\na cat\n   \n\t\na dog\n\n", ["a cat", "a dog"], id="blank lines"),
        pytest.param(b"  a cat \t\n", ["a cat"], id="outer white space"),
        pytest.param(b"a  cat\tand a dog\n", ["a  cat\tand a dog"], id="inner white space"),
        pytest.param(b"12 - a cat\n 7 -  a dog\n", ["a cat", "a dog"], id="numbering"),
        pytest.param(b"12 - 3 - a cat\n", ["3 - a cat"], id="one numbering, not two"),
        pytest.param(
            b"12 cats\n12-pointed star\nroom 12 - a cat\n",
            ["12 cats", "12-pointed star", "room 12 - a cat"],
            id="numbers",
        ),
        pytest.param(b"a cat\na cat\n", ["a cat", "a cat"], id="repeats are kept"),
        pytest.param(
            "un café 🦊\nкот\n猫、犬\ne\u0301\n".encode(),
            ["un café 🦊", "кот", "猫、犬", "e\u0301"],
            id="unicode as it is",
        ),
        pytest.param(
            "a\u2028cat\na\u2029dog\na\x85fox\na\x0bhen\na\x0cpig\n".encode(),
            ["a\u2028cat", "a\u2029dog", "a\x85fox", "a\x0bhen", "a\x0cpig"],
            id="only line ends part prompts",
        ),
    ],
)
def test_read(tmp_path: Path, content: bytes, prompts: list[str]):
    assert read_prompts(prompt_file(tmp_path, content)) == prompts


def test_read_long_lines(tmp_path: Path):
    """Lines of 2,000 characters, as in DiffusionDB, are not cut."""
    long = ("a very " * 400)[:1999] + "x"
    assert len(long) == 2000
    assert read_prompts(prompt_file(tmp_path, f"{long}\na cat\n{long}\n".encode())) == [long, "a cat", long]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param(b"", "no prompt in it", id="empty"),
        pytest.param(b"\n \r\n\t\n", "no prompt in it", id="blank lines only"),
        pytest.param(b"\xef\xbb\xbf", "no prompt in it", id="byte-order mark only"),
        pytest.param(b"a cat\na d\0g\n", "holds zero bytes", id="zero bytes"),
        pytest.param(b"a cat\na dog\ncaf\xe9\n", "line 3 is not UTF-8 but looks like Windows-1252", id="latin-1"),
        pytest.param(
            b"\xef\xbb\xbfa cat\r\ncaf\xe9\r\n",
            "line 2 is not UTF-8 but looks like Windows-1252",
            id="latin-1 after a mark",
        ),
        pytest.param("кот и пёс\n".encode("cp1251"), "line 1 is not UTF-8", id="Cyrillic"),
        pytest.param(b"a cat\n" * 50_000 + b"\xff\n", "line 50001 is not UTF-8", id="far down"),
        pytest.param("a cat\n".encode("utf-16"), "is UTF-16, not UTF-8", id="utf-16"),
        pytest.param("кот\n".encode("utf-16"), "is UTF-16, not UTF-8", id="Cyrillic in utf-16"),
        pytest.param("a cat\n".encode("utf-16-be"), "is UTF-16, not UTF-8", id="utf-16 without a mark"),
        pytest.param("a cat\n".encode("utf-32"), "is UTF-32, not UTF-8", id="utf-32"),
    ],
)
def test_unusable_content(tmp_path: Path, content: bytes, problem: str):
    """The error is one line that names the flag, the file and what to do."""
    path = prompt_file(tmp_path, content)
    advice = "save the file as UTF-8" if "UTF-8" in problem else "give a text file, one prompt per line"
    with pytest.raises(ValueError) as error:
        read_prompts(path, "--eval_prompts")
    assert str(error.value) == f"--eval_prompts {path}: {problem}; {advice}"


def test_lines_of_two_kinds_are_not_one_prompt(tmp_path: Path):
    path = prompt_file(tmp_path, b"a cat\r\n\ra dog\rbird\r\n")
    with pytest.raises(ValueError) as error:
        read_prompts(path)
    ends = "save the file with one kind of line end, such as LF"
    assert str(error.value) == f"--prompt_txt {path}: line 2 is several lines, parted by CR alone; {ends}"


def saved(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 9\n",
            "is a git-lfs pointer; fetch the file",
        ),
        (b"\xef\xbb\xbf\n <!DOCTYPE html>\n<title>404</title>\n", "is an HTML page, as sites send in place of a file"),
        (b"<html lang='en'>\n", "is an HTML page"),
        (b'<?xml version="1.0" encoding="UTF-8"?>\n<Error>\n', "is XML, as sites send in place of a file; download"),
        (b"\x89PNG\r\n\x1a\n\0\0", "is no text but a PNG image; give a text file"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "is no text but a JPEG image; give a text file"),
        (b"GIF89a\x01\0", "is no text but a GIF image; give a text file"),
        (b"RIFF\x0a\0\0\0WEBPVP8 ", "is no text but an image, a sound or a film; give a text file"),
        (b"SQLite format 3\0\x10\0", "is no text but an SQLite database; save its prompts as text or .csv"),
        (b"ARROW1\0\0", "is no text but an Arrow file; give the folder that `datasets` saved, or save"),
        (b"\x93NUMPY\x01\0v\0{'descr'", "is no text but a NumPy array; give a text file"),
        (pickle.dumps({"a": 1}), "is no text but a pickle; give a text file"),
        (saved({"a": torch.zeros(1)}), "is no text but a torch checkpoint; give a text file"),
        (save({"a": torch.zeros(1)}), "is no text but a safetensors file; give a text file"),
        (b"{\\rtf1\\ansi a cat}\n", "is RTF; save it as plain text"),
        (b"PK\x03\x04\x14\0", "is a zip file, as Excel and Word write; save its prompts as text or .csv"),
        (gzip.compress(b"a cat\n", mtime=0), "is compressed; decompress it"),
        (bz2.compress(b"a cat\n"), "is compressed; decompress it"),
        (lzma.compress(b"a cat\n"), "is compressed; decompress it"),
    ],
)
@pytest.mark.parametrize("ending", ["txt", "csv", "json", "parquet"])
def test_another_kind_of_file(tmp_path: Path, ending: str, content: bytes, says: str):
    path = tmp_path / f"prompts.{ending}"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        read_prompts(path)
    assert str(error.value).startswith(f"--prompt_txt {path}: {says}")


@pytest.mark.parametrize("ending", ["txt", "csv", "json"])
def test_parquet_under_another_name(tmp_path: Path, ending: str):
    path = tmp_path / f"prompts.{ending}"
    path.write_bytes(b"PAR1\x15\0")
    with pytest.raises(ValueError, match=r"is no text but Parquet; name the file \.parquet$"):
        read_prompts(path)


@pytest.mark.parametrize(
    "content", ["id,prompt\n1,a cat\n", ",Prompt\n0,a cat\n", "caption;score\na cat;5\n", 'a\ttext\n1\t"a, b"\n']
)
def test_a_table_that_is_named_text(tmp_path: Path, content: str):
    path = prompt_file(tmp_path, content.encode())
    with pytest.raises(ValueError, match=r"its first line is the header of a CSV file; name the file \.csv$"):
        read_prompts(path)


@pytest.mark.parametrize(
    "lines",
    [
        ["a logo, text", "a cat, a dog"],
        ["text, logo", "cat, dog"],
        ["logo,text"],
        ["logo,text", "a cat"],
        ["prompt", "a cat"],
        ["RIFF", "a" * 150_000],
    ],
)
def test_prompts_that_only_look_like_a_table(tmp_path: Path, lines: list[str]):
    assert read_prompts(prompt_file(tmp_path, "\n".join(lines).encode())) == lines


def test_unusable_path(tmp_path: Path):
    advice = "give a text file, one prompt per line"
    for path, problem in [(tmp_path / "none.txt", "No such file or directory"), (tmp_path, "Is a directory")]:
        with pytest.raises(ValueError) as error:
            read_prompts(path)
        assert str(error.value) == f"--prompt_txt {path}: cannot be read ({problem}); {advice}"


# The prompts of a step


def sequence(seed: int, steps: int, batch: int, prompts: list[str] = LETTERS) -> list[str]:
    return [text for step in range(steps) for text in prompts_of_step(prompts, seed, step, batch, range(batch))]


@pytest.mark.parametrize("batch", [1, 4, 10, 25])
def test_every_epoch_visits_every_prompt_once(batch: int):
    """Also with batches that span the end of an epoch, and with batches larger than the file."""
    seen = sequence(0, 100 // batch, batch)
    epochs = [seen[i : i + 10] for i in range(0, 100, 10)]
    assert all(sorted(epoch) == LETTERS for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 10  # each epoch has an order of its own


def test_batch_spans_the_end_of_an_epoch():
    """Step 2 of batch 4 takes the last two of the first epoch of ten, then the first two of the second."""
    first, second = sequence(0, 2, 10)[:10], sequence(0, 2, 10)[10:]
    assert prompts_of_step(LETTERS, 0, 2, 4, range(4)) == first[8:] + second[:2]


def test_batch_larger_than_the_file():
    counts = Counter(prompts_of_step(["a", "b", "c"], 5, 0, 8, range(8)))
    assert sorted(counts.values()) == [2, 3, 3]


def test_known_order():
    """If the order changed, a resumed run would train on other prompts without an error."""
    assert "".join(sequence(0, 2, 10)) == "dciahfejbgahjfgeidcb"


def test_depends_on_seed_step_and_sample_alone():
    """Earlier calls and other samples have no influence, so a resumed run needs no state."""
    whole = sequence(3, 10, 4)
    epoch_order.cache_clear()
    for step in (9, 0, 5, 2, 9):
        for sample in (3, 0, 2, 1):
            assert prompts_of_step(LETTERS, 3, step, 4, [sample]) == [whole[step * 4 + sample]]
    assert prompts_of_step(LETTERS, 3, 5, 4, [2, 0, 2]) == [whole[22], whole[20], whole[22]]
    assert prompts_of_step(LETTERS, 3, 5, 4, []) == []
    assert sequence(4, 10, 4) != whole


def test_batch_size_does_not_change_the_order():
    assert sequence(0, 12, 4) == sequence(0, 4, 12) == sequence(0, 48, 1)


def weighted(values: list[float], number: int) -> list[int]:
    """Return how often each of the first prompts is in each of 300 passes, in all."""
    weights = PromptWeights(np.array(values, float))
    drawn = prompts_of_step(range(number), 2, 0, 300 * number, range(300 * number), weights)
    return [Counter(drawn)[index] for index in range(number)]


def test_prompts_are_drawn_by_their_weights():
    """The mean over passes is exact but for the random offset of each; every pass is within one draw of it."""
    counts = weighted([1, 2, 0.5, 4, 2.5], 5)
    assert np.abs(np.array(counts) - 300 * 5 * np.array([1, 2, 0.5, 4, 2.5]) / 10).max() < 40
    assert sum(counts) == 1500
    for offset in (0, 0.3, 0.99):
        shares = np.array([1, 2, 0.5, 4, 2.5]) / 10 * 5
        draws = PromptWeights(np.array([1, 2, 0.5, 4, 2.5])).draws_of_pass(offset)
        assert draws.sum() == 5 and (np.abs(draws - shares) < 1).all()


def test_whole_weights_are_repeats_and_equal_weights_change_nothing():
    """Weights 3 and 1 of four prompts each give the pass that a file with repeats gives, up to the order."""
    for scale in (1.0, 7.0, 1e-300, 1e300):
        equal = PromptWeights(np.full(10, scale))
        assert prompts_of_step(LETTERS, 0, 0, 20, range(20), equal) == prompts_of_step(LETTERS, 0, 0, 20, range(20))
    two = PromptWeights(np.array([3.0, 1.0, 3.0, 1.0]))
    drawn = Counter(prompts_of_step("abcd", 0, 0, 4 * 500, range(4 * 500), two))
    assert drawn["a"] + drawn["c"] == pytest.approx(1500, abs=30)


def test_weighted_prompts_depend_on_seed_step_and_sample_alone():
    weights = PromptWeights(np.arange(1.0, 11))
    whole = prompts_of_step(LETTERS, 3, 0, 40, range(40), weights)
    epoch_order.cache_clear()
    again = PromptWeights(np.arange(1.0, 11))
    for step in (9, 0, 5):
        assert prompts_of_step(LETTERS, 3, step, 4, range(4), again) == whole[step * 4 : step * 4 + 4]


def test_weights_are_part_of_the_fingerprint():
    ones, twos = PromptWeights(np.ones(10)), PromptWeights(np.full(10, 2.0))
    assert len({fingerprint(LETTERS), fingerprint(LETTERS, ones), fingerprint(LETTERS, twos)}) == 3


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_any_split_gives_the_same_global_batch(processes: int, accumulation: int):
    """The shares of all ranks and forward passes together equal the batch of one process, sample by sample."""
    for step in range(7):
        gathered = []
        for rank in range(processes):
            share = global_samples(8, processes, rank)
            size = len(share) // accumulation
            for start in range(0, len(share), size):
                samples = share[start : start + size]
                gathered += zip(samples, prompts_of_step(LETTERS, 1, step, 8, samples), strict=True)
        assert gathered == list(enumerate(prompts_of_step(LETTERS, 1, step, 8, range(8))))


def test_global_samples():
    assert [global_samples(8, 4, rank) for rank in range(4)] == [range(2), range(2, 4), range(4, 6), range(6, 8)]
    assert global_samples(3, 1, 0) == range(3)
    with pytest.raises(ValueError, match=r"^a global batch of 6 does not divide over 4 processes$"):
        global_samples(6, 4, 0)


# The files of data/


@pytest.fixture(scope="module")
def data() -> dict[str, list[str]]:
    return {name: read_prompts(ROOT / "data" / name) for name in SIZES}


def test_make_prompts_reproduces_the_files(make_prompts, tmp_path: Path):
    make_prompts.main(["--out", str(tmp_path / "made")])
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == sorted(SIZES)
    for name in SIZES:
        assert (tmp_path / "made" / name).read_bytes() == (ROOT / "data" / name).read_bytes(), name


def test_make_prompts_seed(make_prompts, tmp_path: Path, data: dict[str, list[str]]):
    """Another seed gives other prompts, in the same number, and an equally balanced set of captions."""
    make_prompts.main(["--seed", "1", "--out", str(tmp_path)])
    for name, size in SIZES.items():
        made = read_prompts(tmp_path / name)
        assert len(made) == size and made != data[name], name
    check_shapes_eval(read_prompts(tmp_path / "shapes_eval.txt"))


def test_files_are_plain_lines(data: dict[str, list[str]]):
    """The files have the expected sizes, no duplicates, LF line ends and a final one; reading drops nothing."""
    for name, size in SIZES.items():
        content = (ROOT / "data" / name).read_bytes()
        assert content.decode() == "\n".join(data[name]) + "\n", name
        assert len(data[name]) == len(set(data[name])) == size, name


def test_eval_prompts_are_held_out(data: dict[str, list[str]]):
    assert not set(data["prompts_eval.txt"]) & set(data["prompts_train.txt"])
    assert data["prompts_eval_16.txt"] == data["prompts_eval.txt"][:16]
    assert not set(data["shapes_eval.txt"]) & set(data["shapes_train.txt"])
    assert sorted(data["shapes_eval.txt"] + data["shapes_train.txt"]) == sorted(all_captions())


def test_english_prompts_are_well_formed(make_prompts, data: dict[str, list[str]]):
    """Slots are filled, lengths are as in the README, articles are right, sentences have a capital and a full stop."""
    prompts = data["prompts_train.txt"] + data["prompts_eval.txt"]
    words = sorted(len(prompt.split()) for prompt in prompts)
    assert (words[0], words[-1]) == (4, 40)
    for prompt in prompts:
        assert not set(prompt) & set("{}|[]<>") and "  " not in prompt, prompt
        assert prompt[0].isupper() == prompt.endswith("."), prompt
        for article, word in zip(prompt.lower().split(), prompt.lower().split()[1:], strict=False):
            vowel = word[0] in "aeiou" and not word.startswith(("one-", "uni"))
            assert article not in ("a", "an") or article == ("an" if vowel else "a"), prompt


def test_every_word_list_is_used(make_prompts):
    """A list that no frame uses would be dead text."""
    blocks = make_prompts.parse_grammar(make_prompts.GRAMMAR)
    families = [lists for lists in blocks.values() if "core" in lists]
    assert len(families) == 16
    used = set()
    for lists in families:
        reached, new = set(), {"frame"}
        while new:
            reached |= new
            new = {slot for name in new for slot in re.findall(r"{(\w+)}", " ".join(lists[name]))} - reached
        used |= reached
    assert used == {name for lists in blocks.values() for name in lists}


def check_shapes_eval(captions: list[str]) -> None:
    """4, 8 and 4 captions of 1, 2 and 3 attributes; attributes even, and values within one of each other."""
    named = [parse_caption(text) for text in captions]
    assert Counter(map(len, named)) == {1: 4, 2: 8, 3: 4}
    for kind, values in ATTRIBUTES.items():
        counts = Counter(some[kind] for some in named if kind in some)
        assert counts.total() == 8 and set(counts) == set(values), kind
        assert max(counts.values()) - min(counts.values()) <= 1, kind


def test_shapes_eval_is_balanced(data: dict[str, list[str]]):
    check_shapes_eval(data["shapes_eval.txt"])


def test_shapes_geneval_has_sixteen_captions_of_each_category(data: dict[str, list[str]]):
    """All single attributes are included, and all colours and shapes in the bindings."""
    counts = Counter(map(category, data["shapes_geneval.txt"]))
    assert counts == dict.fromkeys(OF_ONE[1:], 16)
    bound = [parse_caption(text) for text in data["shapes_geneval.txt"] if category(text) == "colour_shape"]
    assert {kind: {some[kind] for some in bound} for kind in bound[0]} == {
        kind: set(ATTRIBUTES[kind]) for kind in ("colour", "shape")
    }


def test_captions_of_two_objects_are_the_small_worlds_and_more(data: dict[str, list[str]]):
    """Training has all captions of shapes_train.txt; three in four captions have two objects, in every relation."""
    kinds = Counter(category(text) in OF_TWO for text in data["pairs_train.txt"])
    assert kinds == {True: 1491, False: 509} and set(data["shapes_train.txt"]) < set(data["pairs_train.txt"])
    named = [pairs.parse_caption(text) for text in data["pairs_train.txt"] if category(text) in OF_TWO]
    assert {said["relation"] for said in named} == set(pairs.ATTRIBUTES["relation"])
    assert data["pairs_geneval.txt"][:48] == data["shapes_geneval.txt"][:48]


def test_every_shapes_caption_parses(data: dict[str, list[str]]):
    """Together they name every value, and leave every attribute open (None)."""
    named = [parse_caption(text) for text in data["shapes_train.txt"] + data["shapes_eval.txt"]]
    assert {kind: {some.get(kind) for some in named} for kind in ATTRIBUTES} == {
        kind: {None, *values} for kind, values in ATTRIBUTES.items()
    }
