"""Which given image is of which prompt: by names, by a CSV file, or by the order of the files."""

import argparse
import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from dpdmd.sampling.given_images import find_images, is_table, natural_order, read_table
from dpdmd.sampling.image_folder import is_whole
from dpdmd.utils.image_grid import save_image
from dpdmd.utils.paths import user_path
from dpdmd.utils.text_files import MAX_PROMPT_LETTERS


def test_names_of_given_images(tmp_path):
    for name in ("2.png", "10.jpg", "0.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    found = find_images(tmp_path, [str(i) for i in range(11)]).images
    assert {(item.key, item.prompt) for item in found} == {((0, 0), "0"), ((2, 0), "2"), ((10, 0), "10")}
    with pytest.raises(ValueError, match=r"10\.jpg is of prompt 10"):
        find_images(tmp_path, ["a", "b", "c"])


def test_names_give_prompts_and_samples(tmp_path):
    prompts = ["a red circle", "a cross"]
    for name in ("00000_001", "00001_000", "1_2"):
        save_image(Image.new("RGB", (8, 8)), tmp_path / f"{name}.png")
    found = find_images(tmp_path, prompts).images
    assert [(image.key, image.prompt) for image in found] == [
        ((0, 1), prompts[0]),
        ((1, 0), prompts[1]),
        ((1, 2), prompts[1]),
    ]
    with pytest.raises(ValueError, match=r"00001_000\.png is of prompt 1, but there are 1 prompts"):
        find_images(tmp_path, prompts[:1])


def place(folder, *names):
    for name in names:
        save_image(Image.new("RGB", (8, 8)), folder / name)


@pytest.mark.parametrize(
    "other",
    [
        "grid.png",
        "._00000_000.png",
        ".hidden.png",
        ".thumbnails/00000_000.png",
        "__MACOSX/._00000_000.png",
        "@eaDir/a.png",
    ],
)
@pytest.mark.parametrize("prompts", [[], ["a", "b"]])
def test_sheets_and_files_of_file_managers_are_no_images(tmp_path, other, prompts):
    """`dpdmd.generate` writes grid.png itself; macOS and Synology write the others."""
    names = ["00000_000.png", "00000_001.png", "00001_000.png"]
    place(tmp_path, *names, other)
    (tmp_path / "Thumbs.db").touch()
    (tmp_path / ".DS_Store").touch()
    found = find_images(tmp_path, prompts).images
    assert [image.path.name for image in found] == names
    assert [image.key for image in found] == [(0, 0), (0, 1), (1, 0)]


@pytest.mark.parametrize("result", ["per_image.csv", "summary.json"])
def test_results_beside_the_images_are_no_images(tmp_path, result):
    """The folder of --images may be --output_dir; grids/ without results is the user's own."""
    place(tmp_path, "00000_000.png", "00000_001.tif", "grids/00001_000.png")
    assert len(find_images(tmp_path, []).images) == 3
    (tmp_path / result).touch()
    assert [image.key for image in find_images(tmp_path, []).images] == [(0, 0), (0, 1)]


def test_a_root_programs_folder_holds_its_pictures_and_no_grids(tmp_path):
    place(tmp_path, "pictures/00000_000.png", "pictures/00000_001.png", "grids/00000.png")
    assert [image.key for image in find_images(tmp_path, ["a"]).images] == [(0, 0), (0, 1)]


def test_genevals_layout_gives_prompts_and_samples(tmp_path):
    place(tmp_path, *(f"0000{n}/samples/000{m}.png" for n in range(2) for m in range(2)), "00000/grid.png")
    assert [image.key for image in find_images(tmp_path, ["a", "b"]).images] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_an_image_named_grid_among_other_names_counts(tmp_path):
    place(tmp_path, "cat.png", "dog.png", "grid.png")
    assert len(find_images(tmp_path, []).images) == 3
    place(tmp_path / "alone", "grid.png")
    assert len(find_images(tmp_path / "alone", []).images) == 1


def test_an_ambiguous_name_is_named(tmp_path):
    place(tmp_path, "00000_000.png", "cover.png")
    with pytest.raises(ValueError, match=r"which prompt is of which image\? cover\.png has no number"):
        find_images(tmp_path, ["a"])
    place(tmp_path / "more", "a/00000_000.png", "b/00000_000.png")
    with pytest.raises(ValueError, match=r"a/00000_000\.png and .*b/00000_000\.png have the same number"):
        find_images(tmp_path / "more", ["a"])


def test_a_name_that_is_not_utf8_is_named(tmp_path):
    """The result files could not hold it, which would only be found after the scoring."""
    place(tmp_path, "00000_000.png")
    (tmp_path / os.fsdecode(b"caf\xe9.png")).touch()
    with pytest.raises(ValueError, match=r"caf\\udce9\.png': its name is not UTF-8; rename it"):
        find_images(tmp_path, [])
    with pytest.raises(argparse.ArgumentTypeError, match="its name is not UTF-8; rename it"):
        user_path(os.fsdecode(b"caf\xe9"))


def keys_of(images) -> dict[str, tuple[int, int]]:
    return {image.path.name: image.key for image in images}


def test_names_that_count_from_one(tmp_path):
    """As many images as prompts, 1 to N: prompt 1 is the first. A message says so; other numbers are an error."""
    place(tmp_path, "0001.png", "0002.png")
    given = find_images(tmp_path, ["a", "b"])
    assert keys_of(given.images) == {"0001.png": (0, 0), "0002.png": (1, 0)}
    assert given.note.endswith("the names count from 1: 0001.png is of 'a'")
    with pytest.raises(ValueError, match=r"0001\.png is of prompt 1, but there are 1 prompts, from 0; if names do not"):
        find_images(tmp_path, ["a"])
    with pytest.raises(ValueError, match="The names begin at 1, and 2 images of 3 prompts may count from 0 or from 1"):
        find_images(tmp_path, ["a", "b", "c"])
    place(tmp_path / "ours", "00001_000.png", "00002_000.png")  # `generate` counts from 0: prompt 0 has no image
    given = find_images(tmp_path / "ours", ["a", "b", "c"])
    assert given.note == "" and keys_of(given.images) == {"00001_000.png": (1, 0), "00002_000.png": (2, 0)}


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        (("A red circle!.png", "a_cross.png"), [(1, 0), (0, 0)]),
        (("a cross (10).png", "a cross (2).png", "a-red-circle-1.png"), [(0, 1), (0, 0), (1, 0)]),
        (("a street with a yellow bus number 5 i.png", "a_cross_0.png"), [(3, 0), (0, 0)]),
        (("route_66.png", "route_66_1.png"), [(2, 0), (2, 1)]),
    ],
)
def test_files_named_after_their_prompts(tmp_path, names, keys):
    """Signs and case do not matter, a number behind the prompt is the sample's, and a long name may be cut off."""
    prompts = ["a cross", "a red circle", "route 66", "a street with a yellow bus number 5 in the rain"]
    place(tmp_path, *names)
    given = find_images(tmp_path, prompts)
    assert keys_of(given.images) == dict(zip(names, keys, strict=True)) and given.note == ""
    assert all(image.prompt == prompts[image.key[0]] for image in given.images)


def test_macos_splits_accents_in_names(tmp_path):
    """Its file names are in Unicode's NFD, prompts mostly in NFC."""
    prompts = ["café", "한국 거리", "a cross"]
    place(tmp_path, *(unicodedata.normalize("NFD", f"{prompt}.png") for prompt in reversed(prompts)))
    given = find_images(tmp_path, prompts)
    assert given.note == "" and {image.key[0]: image.prompt for image in given.images} == dict(enumerate(prompts))
    for image in given.images:
        assert unicodedata.normalize("NFC", image.path.stem) == image.prompt


def test_one_name_of_no_prompt_is_an_error(tmp_path):
    place(tmp_path, "a cross.png", "cover.png")
    with pytest.raises(ValueError, match=r"cover\.png is named after no prompt, as other images are; rename it, or"):
        find_images(tmp_path, ["a cross", "a circle"])


def test_names_that_say_nothing_are_taken_in_their_order(tmp_path):
    """2 comes before 10, each prompt has as many, and a message names the first and the last."""
    place(tmp_path, *(f"image{n}.png" for n in (1, 2, 9, 10)))
    given = find_images(tmp_path, ["a", "b"])
    assert [image.path.name for image in given.images] == ["image1.png", "image2.png", "image9.png", "image10.png"]
    assert [image.key for image in given.images] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert "2 for each prompt: image1.png is of 'a', image10.png of 'b'" in given.note
    with pytest.raises(ValueError, match="4 images do not divide over 3 prompts; give a CSV file"):
        find_images(tmp_path, ["a", "b", "c"])
    with pytest.raises(ValueError, match="4 images do not divide over 5 prompts"):
        find_images(tmp_path, list("abcde"))


def test_a_number_of_images_for_each_prompt_goes_before_names(tmp_path):
    """0 to 3 would be four prompts. Without prompts, the images of a prompt are still known to belong together."""
    place(tmp_path, *(f"{n}.png" for n in (0, 1, 2, 3)))
    for prompts in (["a", "b"], []):
        given = find_images(tmp_path, prompts, 2)
        assert [image.key for image in given.images] == [(0, 0), (0, 1), (1, 0), (1, 1)] and given.note == ""
    with pytest.raises(ValueError, match=r"_per_prompt 2: there are 4 images in .*, but 3 prompts have 6; give the"):
        find_images(tmp_path, ["a", "b", "c"], 2)
    with pytest.raises(ValueError, match=r"--images_per_prompt 3: there are 4 images in .*, but they do not divide"):
        find_images(tmp_path, [], 3)


def test_folders_sort_by_their_numbers():
    paths = ["b/1.png", "a10/1.png", "a2/10.png", "a2/9.png", "a/x.png", "2.png"]
    ordered = sorted(map(Path, paths), key=natural_order)
    assert list(map(str, ordered)) == ["2.png", "a2/9.png", "a2/10.png", "a10/1.png", "a/x.png", "b/1.png"]


def write_table(folder: Path, text: str, name: str = "images.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize(
    ("header", "separator", "name"),
    [("file,prompt", ",", "images.csv"), ("File_Name;text", ";", "metadata.csv"), ("prompt\tpath", "\t", "list.tsv")],
)
def test_a_table_gives_prompts_and_samples(tmp_path, header, separator, name):
    """Prompts count in the order they appear, and each may have several images, also in folders below."""
    place(tmp_path, "cat.png", "more/dog.png", "more/third.jpg")
    rows = [("more/dog.png", '"a cross"'), ("cat.png", "a circle"), ("more/third.jpg", "a cross")]
    rows = [row[::-1] if header.startswith("prompt") else row for row in rows]
    lines = [header, *(separator.join(row) for row in rows)]
    images = read_table(write_table(tmp_path, "\n".join(lines) + "\n", name))
    assert [(image.key, image.prompt) for image in images] == [
        ((0, 0), "a cross"),
        ((1, 0), "a circle"),
        ((0, 1), "a cross"),
    ]
    assert [image.path for image in images] == [tmp_path / n for n in ("more/dog.png", "cat.png", "more/third.jpg")]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no column is named file, file_name, filename, image, path; its columns are none"),
        ("name,prompt\na.png,x\n", "no column is named file, .*; its columns are name, prompt"),
        ("file,words\na.png,x\n", "no column is named prompt, caption, text; give --prompt_column"),
        ("file,prompt\n", "names no image"),
        ("file,prompt\na.png,x\nnone.png,x\n", r"line 3: .*none\.png: no such file"),
        ("file,prompt\na.png,x\n,x\n", "line 3: .*: no such file"),
        (f"file,prompt\na.png,x\n{'b' * 300}.png,x\n", r"line 3: .*b\.png: cannot be read \(File name too long\)"),
        ("file,prompt\na.png,x\nb.png, \n", "line 3 has no prompt"),
        ("file,prompt\na.png,x\nb.png,x\n./a.png,y\n", r"lines 2 and 4 name the same file, .*a\.png"),
        ("file,prompt\na.png,x\n", r"1 images beside those in it are not in it, such as .*b\.png; add or move them"),
        ("file,prompt\na.png,x,y\n", "line 2 has 3 values, the header 2; a value that contains the separator needs"),
        ("file,prompt\na.png," + "x" * (MAX_PROMPT_LETTERS + 1) + "\n", "a prompt has at most"),
    ],
)
def test_a_table_that_cannot_be_used(tmp_path, text, says):
    place(tmp_path, "a.png", "b.png")
    table = write_table(tmp_path, text)
    with pytest.raises(ValueError, match=f"^--images {table}: .*{says}"):
        read_table(table)


def test_a_table_that_cannot_be_read(tmp_path):
    (tmp_path / "latin.csv").write_bytes("file,prompt\na.png,caf\xe9\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.csv: is not UTF-8; save the file as UTF-8"):
        read_table(tmp_path / "latin.csv")
    with pytest.raises(ValueError, match=r"--images .*none\.csv: cannot be read \(No such file or directory\)"):
        read_table(tmp_path / "none.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(ValueError, match=r"pipe\.csv: cannot be read \(No regular file but a pipe or a device\)"):
        read_table(tmp_path / "pipe.csv")


@pytest.fixture
def locked(monkeypatch):
    """Let folders named locked refuse to be read, also to root."""

    def refusing(original, is_locked):
        def call(path, *arguments, **options):
            if is_locked(Path(path)):
                raise PermissionError(13, "Permission denied", str(path))
            return original(path, *arguments, **options)

        return call

    for name in ("scandir", "listdir"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name), lambda path: path.name == "locked"))
    monkeypatch.setattr(os, "stat", refusing(os.stat, lambda path: "locked" in path.parent.parts))


def test_a_folder_that_cannot_be_read_is_not_left_out(tmp_path, locked):
    """Its images would be missing in the scores. Folders that hold no images, such as lost+found, do not matter."""
    place(tmp_path, "0.png")
    (tmp_path / "below" / "locked").mkdir(parents=True)
    with pytest.raises(ValueError) as error:
        find_images(tmp_path, [])
    assert str(error.value) == f"--images {tmp_path}: {tmp_path}/below/locked cannot be read (Permission denied)"
    for folder in (tmp_path / "below" / "locked", tmp_path / "below" / "locked" / "more"):
        with pytest.raises(ValueError) as error:
            find_images(folder, [])
        assert str(error.value) == f"--images {folder}: cannot be read (Permission denied)"
    (tmp_path / "below").rename(tmp_path / ".below")
    assert len(find_images(tmp_path, []).images) == 1


def test_a_table_beside_what_cannot_be_read(tmp_path, locked):
    (tmp_path / "locked").mkdir()
    table = tmp_path / "locked" / "images.csv"
    assert is_table(table)
    with pytest.raises(ValueError) as error:
        read_table(table)
    assert str(error.value) == f"--images {table}: cannot be read (Permission denied)"
    table = write_table(tmp_path, "file,prompt\nlocked/a.png,x\n")
    with pytest.raises(ValueError, match=r"line 2: .*locked/a\.png: cannot be read \(Permission denied\)"):
        read_table(table)


def test_a_link_that_leads_nowhere_is_an_image_that_cannot_be_read(tmp_path):
    for name in ("0_0.png", "0_1.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "0_2.png").symlink_to("gone")
    (tmp_path / "0_3.png").symlink_to("0_3.png")
    found = find_images(tmp_path, []).images
    assert [image.key for image in found] == [(0, sample) for sample in range(4)]
    assert [is_whole(image.path) for image in found] == [True, True, False, False]
    (tmp_path / "images.csv").write_text("file,prompt\n0_0.png,a\n0_1.png,a\n")
    with pytest.raises(ValueError, match=r"2 images beside those in it are not in it, such as .*0_2\.png"):
        read_table(tmp_path / "images.csv")


@pytest.mark.parametrize("ending", ["avif", "HEIC", "jfif", "jxl"])
def test_an_image_with_an_ending_that_is_not_read_is_named(tmp_path, ending):
    (tmp_path / "below").mkdir()
    for name in ("0_0.png", f"below/0_1.{ending}", f".0_2.{ending}"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=f"^--images {tmp_path}: 1 image with an ending .*/0_1.{ending}; save them as"):
        find_images(tmp_path, [])
    (tmp_path / "images.csv").write_text("file,prompt\n0_0.png,a\n")
    (tmp_path / f"0_1.{ending}").touch()
    with pytest.raises(ValueError, match=f"1 images beside those in it are not in it, such as .*0_1.{ending}"):
        read_table(tmp_path / "images.csv")


def test_an_image_is_no_folder_of_images(tmp_path):
    place(tmp_path, "a.png")
    with pytest.raises(ValueError, match=r"--images .*a\.png: is a file; give a folder of images, or a CSV file"):
        find_images(tmp_path / "a.png", [])
    with pytest.raises(ValueError, match=r"--images .*none: no such folder"):
        find_images(tmp_path / "none", [])
