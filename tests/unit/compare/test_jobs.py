"""Records of a sweep's stages."""

import pytest

from dpdmd.compare.jobs import Stage


def test_a_stage_of_the_same_model_by_another_name_is_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def stage(model: str, teacher: str) -> Stage:
        return Stage("oracle", tmp_path, [], {"model": model, "teacher_id": teacher, "k_anchor": 5}, True)

    stage("weights/sd35", "teacher").write_record(done=True)
    stage(str(tmp_path / "weights" / "sd35"), "./teacher/").check()
    for other in (stage("weights/sd36", "teacher"), stage("weights/sd35", "teacher2")):
        with pytest.raises(ValueError, match="was made with"):
            other.check()
