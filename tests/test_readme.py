"""Every example of the README and of the pages beside it runs, page by page, in one interpreter session."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / "README.md"
# docs/android.md is run where integer inputs are tested.
PAGES = ("README.md", "docs/training.md", "docs/placement.md")


def text(page):
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page):
    return re.findall(r"```python\n(.*?)```", text(page), flags=re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_python_examples_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    assert blocks(page)
    for block in blocks(page):
        exec(compile(block, page, "exec"), namespace)
    if page == "README.md":
        assert "sensitive" in capsys.readouterr().out
        assert (tmp_path / "digits.tflite").stat().st_size == len(namespace["smallest"])


def test_the_quickstart_and_the_quantizer_are_as_short_as_they_say():
    quickstart, quantizer = (next(block for block in blocks("README.md") if part in block) for part in ("fit(", "def "))
    for block, lines in ((quickstart, 12), (quantizer, 25)):
        assert len([line for line in block.splitlines() if line.strip()]) <= lines


def test_the_first_screen_shows_the_two_commands():
    first_screen = text("README.md").splitlines()[:20]
    assert any("make demo" in line for line in first_screen)
    assert any("make test" in line for line in first_screen)


def test_the_commands_of_the_readme_exist():
    from tfqil.cli import main

    assert set(re.findall(r"python -m tfqil (\w+) ", text("README.md"))) == set(main._COMMANDS)


@pytest.mark.parametrize("page", [*PAGES, "docs/android.md"])
def test_what_a_page_names_is_there(page):
    for path in re.findall(r"(?:`|^    )python ((?:benchmarks|examples)/\w+\.py)", text(page), flags=re.MULTILINE):
        assert (ROOT / path).is_file(), path
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text(page))
    for path in links:
        assert ((ROOT / page).parent / path).is_file(), path
