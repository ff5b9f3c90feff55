"""The wheel and the sdist install in an environment of their own, and the quickstart runs there."""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import venv

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGED = ("LICENSE", "README.md", "pyproject.toml", "setup.py", "tfqil")

pytestmark = pytest.mark.recipe


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> pathlib.Path:
    """A copy of what is packaged, so that building leaves nothing in the checkout."""
    folder = tmp_path_factory.mktemp("source")
    for name in PACKAGED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def run(*command: object, cwd: pathlib.Path) -> str:
    """The output of a command; its errors where it fails."""
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_the_quickstart_runs_where_the_package_is_installed(kind, source, tmp_path):
    built = tmp_path / "built"
    if kind == "wheel":
        run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", built, ".", cwd=source)
    else:
        run(sys.executable, "setup.py", "sdist", "--dist-dir", built, cwd=source)
    (archive,) = built.iterdir()
    venv.create(tmp_path / "environment", with_pip=True)
    python = tmp_path / "environment" / "bin" / "python"
    # TensorFlow and the rest as they are installed here; not this package, which is so by a hook that this skips.
    site = pathlib.Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    )
    (site / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    run(python, "-m", "pip", "install", "--no-deps", "--no-build-isolation", archive, cwd=tmp_path)

    outside = tmp_path / "outside"
    outside.mkdir()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    quickstart = "".join(re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)[:2])  # The model, and its use.
    script = outside / "quickstart.py"
    script.write_text(
        quickstart + "print(tfqil.__file__)\ntfqil.convert(q_model, path='digits.tflite')\n", encoding="utf-8"
    )
    place = run(python, script, cwd=outside).splitlines()[-1]
    assert pathlib.Path(place).is_relative_to(tmp_path / "environment")
    report = run(python, "-m", "tfqil", "inspect", "digits.tflite", cwd=outside)
    assert "integer" in report
    assert (site / "tfqil" / "py.typed").is_file()
