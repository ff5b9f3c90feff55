"""The tutorial was executed as it stands, shows what it says, and executes again."""

from __future__ import annotations

import json
import re

import pytest

from tests import scripts

FOLDER = scripts.ROOT / "docs"
NOTEBOOK = FOLDER / "tutorial.ipynb"
PICTURES = ("data", "histogram", "quantize", "log", "after", "activations", "bits", "run", "pareto")
TABLES = ("summary", "sensitivity", "suggest")
LARGEST = 600_000

_NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d*)?(e[-+]\d+)?")
_PATH = re.compile(r"(?<![\w.:/<])(?:/[\w.~-]+){2,}|\b[A-Za-z]:\\")
# "some 4.5 %", "1,024 bytes": such a number is one that a cell has to print.
_MEASURED = re.compile(r"\d\.\d|\d ?%|\d,\d{3}|\d (?:bytes|[kKMG]i?B|ms|s|seconds|minutes)\b")


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def committed():
    return read(NOTEBOOK)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    path = tmp_path_factory.mktemp("notebook") / "tutorial.ipynb"
    scripts.run("docs/execute_notebook.py", str(NOTEBOOK), f"--output={path}")
    return read(path)


def code(notebook):
    return {cell["id"]: cell for cell in notebook["cells"] if cell["cell_type"] == "code"}


def markdown(notebook):
    return "\n\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")


def types(cell):
    return {kind for output in cell["outputs"] for kind in output.get("data", {})}


def printed(cell):
    """The text of a cell's outputs."""
    texts = [output.get("text", output.get("data", {}).get("text/plain", "")) for output in cell["outputs"]]
    return "".join("".join(text) for text in texts)


def form(text):
    """A text without its numbers, and without spaces, of which numbers take more or less."""
    without_shift = re.sub(r", minus \S+ before", "", text)  # An interval may begin at 0.
    return re.sub(r"\s+", "", _NUMBER.sub("#", without_shift))


def require_clean(notebook):
    """Every cell has run, in order; nothing failed, warned, or names a place on the machine."""
    cells = code(notebook)
    assert [cell["execution_count"] for cell in cells.values()] == list(range(1, len(cells) + 1))
    for name, cell in cells.items():
        for output in cell["outputs"]:
            assert output["output_type"] in ("stream", "display_data", "execute_result"), (name, output)
            assert output.get("name", "stdout") == "stdout", (name, output)
            without_pictures = {k: v for k, v in output.get("data", {}).items() if not k.startswith("image/")}
            shown = json.dumps([without_pictures, output.get("text", ""), output.get("metadata", {})])
            assert not _PATH.search(shown), (name, _PATH.search(shown))
        assert cell["metadata"] == {}, name
    assert notebook["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }


def test_the_committed_notebook_has_run_from_top_to_bottom_and_is_clean(committed):
    require_clean(committed)
    assert NOTEBOOK.stat().st_size < LARGEST


def test_pictures_and_tables_are_where_they_belong(committed):
    cells = code(committed)
    assert {name for name, cell in cells.items() if "image/png" in types(cell)} == set(PICTURES)
    assert {name for name, cell in cells.items() if "text/html" in types(cell)} == set(TABLES)


def test_a_path_on_the_machine_would_be_found():
    assert all(map(_PATH.search, ("at /home/user/x.py", '"/tmp/a1b2"', "C:\\Users", "in '/opt/venv/lib'")))
    assert not any(map(_PATH.search, ("</span></pre>", "72 / 144", "and/or", "https://arxiv.org/abs/1808.05779")))


def test_measured_numbers_are_printed_and_not_typed(committed):
    text = re.sub(r"\]\([^)]+\)|`[^`]+`", "", markdown(committed))
    assert not _MEASURED.search(text), _MEASURED.search(text)
    assert _MEASURED.search("some 98.2 % of them")


def test_what_the_notebook_links_to_is_there(committed):
    links = re.findall(r"\]\((?!http)([^)#]+)\)", markdown(committed))
    assert links
    for path in links:
        assert (FOLDER / path).is_file(), path


def test_a_notebook_that_is_not_there_is_named(tmp_path):
    sentence = scripts.refused("docs/execute_notebook.py", str(tmp_path / "none.ipynb"))
    assert re.fullmatch(r"Got the path '.*none\.ipynb', expected an existing notebook: check the path\.", sentence)


@pytest.mark.recipe
def test_the_notebook_executes(executed, committed):
    require_clean(executed)
    for name, cell in code(committed).items():
        again = code(executed)[name]
        assert types(again) == types(cell), name
        assert form(printed(again)) == form(printed(cell)), name


@pytest.mark.recipe
def test_the_files_of_the_notebook_compute_what_was_trained(executed):
    proof = printed(code(executed)["verify"])
    assert "accepted: True" in proof and "differ from the integer model: 0 of" in proof
    assert re.search(r"second +INT2 +[\d,]+ bytes, +3 different codes", printed(code(executed)["inspect"]))


@pytest.mark.recipe
def test_a_failing_cell_writes_nothing(tmp_path):
    path, output = tmp_path / "failing.ipynb", tmp_path / "executed.ipynb"
    cell = {"cell_type": "code", "execution_count": None, "id": "one", "metadata": {}, "outputs": [], "source": "1 / 0"}
    path.write_text(json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8")
    assert "ZeroDivisionError" in scripts.refused("docs/execute_notebook.py", str(path), f"--output={output}")
    assert [found.name for found in tmp_path.iterdir()] == ["failing.ipynb"]
