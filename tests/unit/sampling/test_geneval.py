"""GenEval's metadata."""

import json
import re

import pytest

from dpdmd.sampling.geneval import read_metadata


def test_metadata_may_begin_with_a_byte_order_mark(tmp_path):
    """Editors on Windows write one. The line that is copied for GenEval has none."""
    metadata = [{"tag": "single_object", "prompt": "a red circle"}, {"tag": "colors", "prompt": "a cyan cross"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, metadata)), encoding="utf-8-sig")
    assert [json.loads(entry.line) for entry in read_metadata(tmp_path / "metadata.jsonl")] == metadata


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"tag": "colors", "prompt": "a \\ud83d circle"}', r"its prompt 'a \ud83d circle': is not UTF-8"),
        ('{"tag": "colors", "prompt": "\\u200b"}', "its prompt: is empty"),
        ('{"tag": "colors", "prompt": " "}', " has no 'prompt'; give GenEval's evaluation_metadata.jsonl"),
        (json.dumps({"tag": "colors", "prompt": "a" * 300_000}), "has 300,000 letters, and a prompt has at most"),
        ("[" * 100_000, " is no JSON; give GenEval's evaluation_metadata.jsonl"),
    ],
    ids=["surrogate", "invisible", "blank", "document", "nested"],
)
def test_a_wrong_line_is_named(tmp_path, line, says):
    path = tmp_path / "metadata.jsonl"
    path.write_text(f'{{"tag": "colors", "prompt": "a red circle"}}\n{line}\n')
    with pytest.raises(ValueError, match=f"^--geneval {path}: line 2.*{re.escape(says)}"):
        read_metadata(path)
