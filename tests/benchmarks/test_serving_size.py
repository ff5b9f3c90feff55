"""What a served model takes: the command on a small network."""

from __future__ import annotations

import json

import pytest

from tests import scripts

pytestmark = pytest.mark.recipe


def test_all_models_of_a_network_are_weighed_loaded_and_asked(tmp_path):
    path = tmp_path / "folder" / "sizes.json"
    arguments = ["--networks=alexnet_narrow", "--size=67", "--bits=2/2", "--loads=2", "--repeats=3"]
    printed = scripts.run("benchmarks/serving_size.py", *arguments, f"--output={path}")
    records = json.loads(path.read_text())
    assert [record["model"] for record in records] == ["float", "QIL 2/2"]
    for record in records:
        assert f"{record['bytes']:,}" in printed and f"{record['smaller_than_float']:.1f}x" in printed
        assert 0 < record["graph_bytes"] < record["bytes"] and f"{record['graph_bytes']:,}" in printed
        assert record["load_seconds"] > 0 and record["milliseconds"] > 0
    assert records[0]["smaller_than_float"] == 1 < records[1]["smaller_than_float"]
