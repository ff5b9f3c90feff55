"""The targets of Bazel: every module belongs to one, which depends on what the module imports, and they build."""

from __future__ import annotations

import ast
import collections
import dataclasses
import pathlib
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = sorted(path.parent for folder in ("tfqil", "tests") for path in (ROOT / folder).glob("**/BUILD"))
RULES = ("py_library", "py_binary", "pytest_test", "filegroup", "alias")
# What `pytest_test` in tests/pytest.bzl gives each test.
DATA_OF_TESTS = ("//:pyproject.toml",)


@dataclasses.dataclass(frozen=True)
class Target:
    """A rule of a BUILD file."""

    package: str
    rule: str
    attributes: Mapping[str, Any]

    @property
    def label(self) -> str:
        return f"//{self.package}:{self.attributes['name']}"

    @property
    def sources(self) -> list[pathlib.Path]:
        names = [self.attributes["name"] + ".py"] if self.rule == "pytest_test" else self.attributes.get("srcs", [])
        return [ROOT / self.package / name for name in names if name.endswith(".py")]

    def labels(self, attribute: str) -> list[str]:
        """Its labels, all of them with package and name."""
        return [self._whole(label) for label in self.attributes.get(attribute, [])]

    def _whole(self, label: str) -> str:
        if not label.startswith("//"):
            return f"//{self.package}:{label.removeprefix(':')}"
        return label if ":" in label else f"{label}:{label.rpartition('/')[2]}"


def targets_of(folder: pathlib.Path) -> list[Target]:
    """The targets of a package. What BUILD files say here is Python too."""
    found: list[Target] = []
    package = folder.relative_to(ROOT).as_posix()

    def rule(name: str) -> Any:
        return lambda **attributes: found.append(Target(package, name, attributes))

    def glob(include: list[str], exclude: Iterable[str] = ()) -> list[str]:
        paths = {path.relative_to(folder).as_posix() for pattern in include for path in folder.glob(pattern)}
        return sorted(path for path in paths - set(exclude) if (folder / path).is_file())

    names: dict[str, Any] = {name: rule(name) for name in RULES}
    for name in ("load", "package", "licenses", "exports_files"):
        names[name] = lambda *_, **__: None
    exec(
        compile((folder / "BUILD").read_text(encoding="utf-8"), str(folder / "BUILD"), "exec"), {**names, "glob": glob}
    )
    return found


TARGETS = [target for folder in PACKAGES for target in targets_of(folder)]


def module_name(path: pathlib.Path) -> str:
    """As it is imported."""
    return path.relative_to(ROOT).as_posix().removesuffix(".py").replace("/", ".").removesuffix(".__init__")


OWNERS = {module_name(path): target.label for target in TARGETS for path in target.sources}


def imported(path: pathlib.Path) -> set[str]:
    """The modules of this repository that a module imports, at its top or later."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in OWNERS else node.module or "" for name in names}
    return found & set(OWNERS)


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda folder: folder.relative_to(ROOT).as_posix())
def test_each_module_belongs_to_one_target(folder):
    sources = collections.Counter(path for target in targets_of(folder) for path in target.sources)
    exported = {ROOT / "tests" / "run_pytest.py"}  # A source of every test.
    assert sources == collections.Counter(set(folder.glob("*.py")) - exported)


def test_every_folder_of_modules_has_targets():
    folders = {path.parent for name in ("tfqil", "tests") for path in (ROOT / name).glob("**/*.py")}
    assert folders <= set(PACKAGES)


def with_their_own(labels: Iterable[str]) -> set[str]:
    """Labels, and those that they depend on."""
    found: set[str] = set()
    pending = list(labels)
    while pending:
        label = pending.pop()
        if label not in found:
            found.add(label)
            pending += next(target for target in TARGETS if target.label == label).labels("deps")
    return found


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.label)
def test_a_target_depends_on_what_its_modules_import(target):
    needed = {OWNERS[name] for path in target.sources for name in imported(path)} - {target.label}
    if target.rule == "pytest_test":
        assert needed <= with_their_own(target.labels("deps"))
    else:
        assert set(target.labels("deps")) == needed


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.label)
def test_no_label_is_given_twice(target):
    """Bazel refuses that."""
    for attribute in ("srcs", "deps", "data"):
        labels = target.labels(attribute)
        if target.rule == "pytest_test" and attribute == "data":
            labels += [*DATA_OF_TESTS, f"{target.label}.py"]
        assert len(set(labels)) == len(labels)


@pytest.mark.skipif(shutil.which("bazel") is None, reason="Bazel is not installed.")
def test_bazel_builds_the_libraries_without_a_network(tmp_path):
    """Of a copy, since Bazel leaves links in the folder that it builds."""
    kept = shutil.ignore_patterns(".*venv*", ".git", "*cache*", "bazel-*")
    shutil.copytree(ROOT, tmp_path / "copy", ignore=kept)
    command = ["bazel", "--batch", f"--output_user_root={tmp_path / 'bazel'}", "build", "//..."]
    done = subprocess.run(command, cwd=tmp_path / "copy", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
