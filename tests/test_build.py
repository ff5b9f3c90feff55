"""Every test module has a target of Bazel, and every target a module."""

import pathlib
import re

import pytest

TESTS = pathlib.Path(__file__).parent
FOLDERS = sorted(path.parent for path in TESTS.glob("**/BUILD") if list(path.parent.glob("test_*.py")))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_targets_and_modules_are_the_same(folder):
    text = (folder / "BUILD").read_text(encoding="utf-8")
    targets = re.findall(r'pytest_test\(\n    name = "(\w+)"', text)
    assert sorted(targets) == sorted(path.stem for path in folder.glob("test_*.py"))
    helpers = {path.name for path in folder.glob("*.py") if not path.name.startswith("test_")}
    libraries = set(re.findall(r'^        "(\w+\.py)",$|^    srcs = \["(\w+\.py)"\]', text, flags=re.MULTILINE))
    named = {name for names in libraries for name in names if name} | set(
        re.findall(r'exports_files\(\["(\w+\.py)"', text)
    )
    assert helpers == named


def test_every_folder_of_tests_has_targets():
    assert {path.parent for path in TESTS.glob("**/test_*.py")} == set(FOLDERS)
