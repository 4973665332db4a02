"""`dpdmd.doctor --memory` of every family: counting the calls of a UNet takes seconds."""

import pytest

from dpdmd import doctor
from dpdmd.models.registry import LAYOUTS


@pytest.mark.parametrize("family", LAYOUTS)
def test_the_table_needs_no_weights(family, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sizes = {}
    for sharding in ((), ("--fsdp",)):
        flags = ["--family", family, "--bf16", "--gradient_checkpointing", "--num_processes", "8", *sharding]
        assert doctor.main(["--memory", *flags]) == 0
        table = capsys.readouterr().out
        assert LAYOUTS[family].repository in table.splitlines()[-1]
        sizes[sharding] = float(table.split("estimated ")[1].removeprefix("at least ").split()[0])
    assert sizes["--fsdp",] < sizes[()] / 1.5
    assert not list(tmp_path.iterdir())
