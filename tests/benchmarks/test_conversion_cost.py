"""What quantizing and converting cost beside TFMOT's own path: the command on a network of few layers."""

from __future__ import annotations

import json

import pytest

from tests import scripts

pytestmark = pytest.mark.recipe


def test_both_ways_end_in_a_file_and_are_compared(tmp_path):
    path = tmp_path / "folder" / "cost.json"
    arguments = ["--architecture=vgg16", "--size=32", "--repeats=1", "--nocheck"]
    printed = scripts.run("benchmarks/conversion_cost.py", *arguments, f"--output={path}")
    result = json.loads(path.read_text())
    medians = result["medians"]
    assert list(medians) == ["TFMOT", "tfqil"]
    for figures in medians.values():
        assert figures["seconds"] > 0 and 100 < figures["megabytes_before"] < figures["peak_megabytes"]
        assert f"{figures['bytes']:,.0f}" in printed
    for figure, ratio in result["ratios"].items():
        assert ratio == pytest.approx(medians["tfqil"][figure] / medians["TFMOT"][figure])
        assert f"{ratio:.2f}x" in printed
        assert result["within_bars"][figure] == (ratio <= result["bars"][figure])
