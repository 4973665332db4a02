"""Prompt files with columns: what is read, and the errors."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from dpdmd.data.prompt_files import read_prompts, read_weighted_prompts
from dpdmd.data.prompts import fingerprint
from dpdmd.utils.text_files import MAX_PROMPT_LETTERS

PROMPTS = ["a cat", 'a "big" dog, asleep', "naïve café\u2028x"]
QUOTED = 'id,prompt\n1,a cat\n2,"a ""big"" dog, asleep"\n3,naïve café\u2028x\n'
COCO = {
    "info": {"year": 2014},
    "images": [{"id": 1, "file_name": "1.jpg"}],
    "annotations": [{"image_id": 1, "id": number, "caption": each} for number, each in enumerate(PROMPTS)],
}


def written(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def message(path: Path, column: str | None = None) -> str:
    """Return the error for a file, without the flag and the file that it must begin with."""
    with pytest.raises(ValueError) as error:
        read_prompts(path, "--div_prompts", column)
    start, text = f"--div_prompts {path}: ", str(error.value)
    assert text.startswith(start) and "\n" not in text
    return text.removeprefix(start)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "\n".join(PROMPTS)),
        ("a.csv", QUOTED),
        ("a.CSV", "\ufeff" + QUOTED.replace("\n", "\r\n")),
        ("a.csv", 'id;Prompt\n1;a cat\n2;"a ""big"" dog, asleep"\n3;naïve café\u2028x'),
        ("a.csv", 'caption\na cat\n"a ""big"" dog, asleep"\n\nnaïve café\u2028x\n'),
        ("a.tsv", 'text\tid\na cat\t1\n"a ""big"" dog, asleep"\t2\n"\t"\t0\nnaïve café\u2028x\t3\n'),
        ("a.jsonl", "\ufeff" + "\r\n".join(json.dumps({"id": 1, "prompt": each}) for each in PROMPTS)),
        ("a.ndjson", "\n\n".join(json.dumps(each, ensure_ascii=False) for each in PROMPTS)),
        ("a.jsonl", "\r".join(json.dumps(each) for each in PROMPTS)),
        ("a.csv", QUOTED.replace("\n", "\r")),
        ("a.json", json.dumps(PROMPTS, indent=1)),
        ("a.json", json.dumps([{"caption": each, "id": {}} for each in [*PROMPTS, None, " "]])),
        ("a.json", json.dumps({"text": PROMPTS, "id": [1, 2, 3]})),
        ("a.json", "\n".join(json.dumps({"prompt": each}) for each in PROMPTS)),
        ("a.json", json.dumps(COCO)),
        ("a.json", json.dumps({"text": "a title", "rows": [{"caption": each} for each in PROMPTS]})),
        ("a.json", json.dumps({"schema": {"fields": []}, "data": [{"prompt": each} for each in PROMPTS]})),
        ("a.json", json.dumps({"id": dict(enumerate("abc")), "prompt": dict(enumerate(PROMPTS))})),
        ("a.json", json.dumps({number: {"prompt": each} for number, each in enumerate(PROMPTS)})),
    ],
)
def test_all_formats_give_the_same_prompts(tmp_path, name, content):
    """A resumed run compares the prompts, so it may change the format of the file."""
    found = read_prompts(written(tmp_path, name, content))
    assert found == PROMPTS and fingerprint(found) == fingerprint(PROMPTS)


def test_a_line_break_in_a_prompt_is_a_space(tmp_path):
    content = 'prompt,id\n"a cat \r\n\r\n  and a dog\n",1\n"12 - a\tb",2\n'
    expected = ["a cat and a dog", "12 - a\tb"]  # a leading number is a numbering only in text
    assert read_prompts(written(tmp_path, "a.csv", content)) == expected
    objects = [{"prompt": "a cat \r\n\r\n  and a dog\n"}, {"prompt": expected[1]}]
    assert read_prompts(written(tmp_path, "a.json", json.dumps(objects))) == expected


def test_the_column_may_be_given(tmp_path):
    path = written(tmp_path, "a.csv", "prompt,text,en\na,b,c\n")
    assert [read_prompts(path, column=name) for name in ("prompt", "text", "en")] == [["a"], ["b"], ["c"]]
    assert message(path) == "several columns may be the prompts; give --prompt_column, one of prompt, text"
    assert message(path, "fr") == "has no column 'fr' (--prompt_column); its columns are 'prompt', 'text', 'en'"
    assert read_prompts(written(tmp_path, "a.txt", "a cat\n"), column="en") == ["a cat"]


def test_each_name_that_an_error_lists_leads_to_the_prompts(tmp_path):
    """The name of a list of objects is not the name of a column in it."""
    path = written(tmp_path, "a.json", json.dumps(COCO))
    assert read_prompts(path, column="caption") == PROMPTS
    for wanted in ("annotations", "en"):
        assert "'caption'" in message(path, wanted).partition("its columns are ")[2]
    assert "several lists in it have prompts: 'images', 'annotations'" in message(path, "id")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "id,en\n1,a\n", "no column is named prompt, caption, text; give --prompt_column, one of 'id', 'en'"),
        ("a.csv", ",".join(f"c{i}" for i in range(99)), "'c18', 'c19', ..."),
        ("a.csv", "a cat\na dog\n", "one of 'a cat'"),
        ("a.csv", "prompt,prompt\na,b\n", "2 columns are named 'prompt'"),
        ("a.csv", "prompt\na cat\na cat, a dog\n", "line 3 has 2 values, the header 1; a value that contains the"),
        ("a.csv", "id,prompt\n1\n", "line 2 has 1 values, the header 2"),
        ("a.csv", 'prompt\na cat\n"a dog\na hen\n', "the row after line 2 is not valid (unexpected end of data)"),
        ("a.csv", 'prompt\n"a" dog\n', "the row after line 1 is not valid"),
        ("a.csv", "", "no prompt in it"),
        ("a.csv", "prompt\n \n", "no prompt in it"),
        ("a.csv", "\nprompt\na cat\n", "line 1 is blank; the first line must have the names of the columns"),
        ("a.csv", b"prompt\na cat\ncaf\xe9 au lait\n", "line 3 is not UTF-8 but looks like Windows-1252"),
        ("a.csv", "id\tprompt\n1\ta\n".encode("utf-16"), "is UTF-16, not UTF-8; save the file as UTF-8"),
        ("a.tsv", "prompt\na\0b\n", "line 2 holds zero bytes"),
        ("a.tsv", "prompt\n" + "x" * (MAX_PROMPT_LETTERS + 1), "line 2 has 200,001 letters"),
        ("a.tsv", "x" * (MAX_PROMPT_LETTERS + 1), "no column is named prompt"),
        ("a.csv", "sep=;\nid;prompt\n1;a\n", "line 1 is 'sep=;', which Excel writes for itself; delete that line"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": \n', "line 2 is not JSON"),
        ("a.jsonl", '{"prompt": "a"}\n{"caption": "b"}\n', "object 2 has no 'prompt'"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": 3}\n', "line 2: the prompt is of type int, not text"),
        ("a.jsonl", '["a", "b"]\n', "line 1: the prompt is of type list, not text"),
        ("a.jsonl", '"a"\n"\\ud800"\n', "line 2 holds half of a surrogate pair"),
        ("a.jsonl", '"a\\u0000"\n', "line 1 holds zero bytes"),
        ("a.json", '{"images": [], "annotations": [{"en": "a"}]}', "give --prompt_column, one of 'images', 'en'"),
        (
            "a.json",
            '{"a": [{"text": "a"}], "b": [{"prompt": "b"}]}',
            "several lists in it have prompts: 'a', 'b'; give",
        ),
        (
            "a.json",
            '{"prompt": {"0": {"en": "a"}}}',
            "no column is named prompt, caption, text; give --prompt_column, one",
        ),
        ("a.json", '{"info": {"year": 2014}}', "has no column of texts; give a text file, one prompt per line"),
        ("a.json", "{}", "has no column of texts; give a text file, one prompt per line"),
        ("a.jsonl", "{}", "has no column of texts; give a text file, one prompt per line"),
        ("a.json", "[" * 100_000, "is not JSON"),
        ("a.json", '["a",\n', "is not JSON"),
        ("a.json", "3", "is JSON of type int; give a list of texts or objects"),
        ("a.json", "[]", "no prompt in it"),
        ("a.yaml", "- a cat\n", "is YAML; give a text file"),
        ("a.txt", '{"prompt": "a"}\n', "is JSON; give a text file, one prompt per line, or name the file .json or"),
    ],
)
def test_wrong_files(tmp_path, name, content, says):
    assert says in message(written(tmp_path, name, content))


def test_a_value_longer_than_the_csv_module_allows(tmp_path):
    """Its limit is 131,072 letters, and it stays so for other users of the module."""
    long = "x" * MAX_PROMPT_LETTERS
    assert read_prompts(written(tmp_path, "a.csv", f"prompt\n{long}\n")) == [long]
    code = "import csv, sys; from pathlib import Path; from dpdmd.data.prompt_files import read_prompts as read\n"
    code += "read(Path(sys.argv[1])); print(csv.field_size_limit(), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.csv"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["131072", "False"]


@pytest.mark.parametrize("name", ["a.parquet", "state.json"])
def test_without_pyarrow(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = written(tmp_path, name, json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    advice = "reading it needs the package pyarrow; pip install -e '.[data]'"
    assert message(path if path.suffix == ".parquet" else tmp_path) == advice


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pip install -e '.[data]'")
    parquet = importlib.import_module("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    texts = pyarrow.array([*PROMPTS, None, "two\nlines"])
    for column in (texts, texts.cast(pyarrow.large_string()), texts.dictionary_encode()):
        table = pyarrow.table({"id": [1, 2, 3, 4, 5], "caption": column, "tags": [["a"]] * 5})
        parquet.write_table(table, path, row_group_size=2)
        assert read_prompts(path) == [*PROMPTS, "two lines"]
    assert message(path, "id") == "column 'id' is of type int64, not text"
    assert "not text" in message(path, "tags")
    assert message(path, "x") == "has no column 'x' (--prompt_column); its columns are 'id', 'caption', 'tags'"
    path.write_bytes(path.read_bytes()[:-50])
    assert message(path).startswith("is not a whole Parquet file (")
    path.write_text("prompt\na cat\n")
    assert message(path).startswith("is not a whole Parquet file (")


def test_a_folder_of_datasets(tmp_path):
    """The layout of `Dataset.save_to_disk`: Arrow streams, in the order of state.json."""
    pyarrow = pytest.importorskip("pyarrow", reason="pip install -e '.[data]'")
    names = ["data-00001-of-00002.arrow", "data-00000-of-00002.arrow"]
    train = tmp_path / "set" / "train"
    train.mkdir(parents=True)
    for name, prompts in zip(names, (PROMPTS[:1], PROMPTS[1:]), strict=True):
        table = pyarrow.table({"prompt": prompts, "width": [64] * len(prompts)})
        with pyarrow.OSFile(str(train / name), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    (train / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    assert read_prompts(train) == PROMPTS
    assert message(train, "width") == "column 'width' is of type int64, not text"
    (train.parent / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert message(train.parent) == "is a folder of splits; give the folder of one: train"
    (train / names[1]).write_bytes(b"damaged")
    assert message(train).startswith(f"{names[1]} is not a whole Arrow file (")
    (train / names[1]).unlink()
    assert message(train).startswith("cannot be read (")
    (train / "state.json").write_text("[]")
    assert message(train).startswith("state.json does not list the files of a dataset")


WEIGHTED = "caption,weight\na cat,2\na dog,0\n ,x\na hen,0.5\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", WEIGHTED),
        ("a.tsv", WEIGHTED.replace(",", "\t")),
        (
            "a.jsonl",
            '{"text": "a cat", "weight": 2}\n{"weight": "0", "text": "a dog"}\n{"text": "a hen", "weight": 0.5}',
        ),
        ("a.json", '[{"caption": "a cat", "weight": 2}, {"caption": "a hen", "weight": "0.5"}]'),
        ("a.json", '{"caption": ["a cat", "a dog", "a hen"], "weight": [2, 0, 0.5]}'),
        ("a.json", '{"caption": {"0": "a cat", "1": "a hen"}, "weight": {"0": 2, "1": 0.5}}'),
        ("a.json", '{"data": [{"caption": "a cat", "weight": 2}, {"caption": "a hen", "weight": 0.5}]}'),
    ],
)
def test_weights_of_all_formats(tmp_path, name, content):
    """A prompt of weight 0 is left out, and the weight of a blank prompt is not read."""
    prompts, weights = read_weighted_prompts(written(tmp_path, name, content), None, "weight")
    assert (prompts, list(weights)) == (["a cat", "a hen"], [2.0, 0.5])


def test_weights_of_parquet_and_datasets(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pip install -e '.[data]'")
    table = pyarrow.table({"weight": [2, 0, 1], "caption": ["a cat", "a dog", "a hen"]})
    importlib.import_module("pyarrow.parquet").write_table(table, tmp_path / "a.parquet")
    assert read_weighted_prompts(tmp_path / "a.parquet", None, "weight")[1].tolist() == [2.0, 1.0]
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    with pyarrow.ipc.new_stream(str(tmp_path / "data.arrow"), table.schema) as stream:
        stream.write_table(table)
    prompts, weights = read_weighted_prompts(tmp_path, "caption", "weight")
    assert (prompts, weights.tolist()) == (["a cat", "a hen"], [2.0, 1.0])


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "prompt,n\na,1\nb,x\n", "line 3 has the weight 'x'; it must be a number, at least 0"),
        ("a.csv", "prompt,n\na,-1\n", "line 2 has the weight '-1'"),
        ("a.csv", "prompt,n\na,\n", "line 2 has the weight ''"),
        ("a.csv", "prompt,n\na,nan\n", "line 2 has the weight 'nan'"),
        ("a.csv", "prompt,n\na,1e999\n", "line 2 has the weight '1e999'"),
        ("a.csv", "prompt,n\na,0\nb,0.0\n", "every weight is 0, so no prompt is ever drawn (--prompt_weight_column)"),
        ("a.csv", "prompt,m\na,1\n", "has no column 'n' (--prompt_weight_column); its columns are 'prompt', 'm'"),
        ("a.csv", "prompt,n,n\na,1,2\n", "has several columns named 'n' (--prompt_weight_column)"),
        ("a.csv", "n,m\na,1\n", "no column is named prompt, caption, text; give --prompt_column, one of 'm'"),
        ("a.jsonl", '{"prompt": "a", "n": true}\n', "line 1 has the weight 'True'"),
        ("a.jsonl", '{"prompt": "a", "n": null}\n', "line 1 has no weight"),
        ("a.jsonl", '{"prompt": "a", "n": 1}\n{"prompt": "a"}\n', "object 2 has no 'n'"),
        ("a.jsonl", '"a"\n', "line 1 has no weight"),
        ("a.json", '{"prompt": ["a", "b"], "n": [1]}', "'n' has 1 values, 'prompt' has 2"),
        ("a.txt", "a\n", "is text without columns; leave out --prompt_weight_column, or give a file with that column"),
    ],
)
def test_wrong_weights(tmp_path, name, content, says):
    path = written(tmp_path, name, content)
    with pytest.raises(ValueError) as error:
        read_weighted_prompts(path, None, "n")
    start, text = f"--prompt_txt {path}: ", str(error.value)
    assert text.startswith(start + says) and "\n" not in text
