"""GenEval's metadata."""

import json

from dpdmd.sampling.geneval import read_metadata


def test_metadata_may_begin_with_a_byte_order_mark(tmp_path):
    """Editors on Windows write one. The line that is copied for GenEval has none."""
    metadata = [{"tag": "single_object", "prompt": "a red circle"}, {"tag": "colors", "prompt": "a cyan cross"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, metadata)), encoding="utf-8-sig")
    assert [json.loads(entry.line) for entry in read_metadata(tmp_path / "metadata.jsonl")] == metadata
