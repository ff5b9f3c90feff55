"""Every example of the README runs, in its order, in one interpreter session."""

import pathlib
import re

import pytest

README = pathlib.Path(__file__).parents[1] / "README.md"


def blocks():
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.slow
def test_the_python_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    assert len(blocks()) >= 4
    for block in blocks():
        exec(compile(block, "README.md", "exec"), namespace)
    assert "sensitive" in capsys.readouterr().out
    assert (tmp_path / "digits.tflite").stat().st_size == len(namespace["smallest"])


def test_the_first_screen_shows_the_two_commands():
    first_screen = README.read_text(encoding="utf-8").splitlines()[:20]
    assert any("make demo" in line for line in first_screen)
    assert any("make test" in line for line in first_screen)


def test_the_commands_of_the_readme_exist():
    from tfqil.cli import main

    commands = set(re.findall(r"python -m tfqil (\w+) ", README.read_text(encoding="utf-8")))
    assert commands == set(main._COMMANDS) | set()
    for path in re.findall(r"`python ((?:benchmarks|examples)/\w+\.py)", README.read_text(encoding="utf-8")):
        assert (README.parent / path).is_file()
