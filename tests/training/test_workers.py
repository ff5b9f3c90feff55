"""Two workers train a quantized model as one process does, and go on as if nothing had happened where one is lost."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from tests import scripts, workers

SCRIPT = "tests/training/two_workers.py"
# Killed in the second epoch of the first model.
STEPS = 6

pytestmark = pytest.mark.recipe


def start_two(folder: pathlib.Path, *arguments: str, killed: int | None = None) -> list[scripts.Process]:
    """Two workers that write `worker0.npz` and `worker1.npz`, one of which kills itself."""
    return [
        scripts.start(
            SCRIPT, str(folder / f"worker{number}.npz"), *arguments, *([str(STEPS)] if number == killed else []),
            environment=environment,
        )
        for number, environment in enumerate(workers.cluster())
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, dict[str, np.ndarray]]:
    """Losses and variables of a process alone and of two workers."""
    folder = tmp_path_factory.mktemp("workers")
    with scripts.together([*start_two(folder), scripts.start(SCRIPT, str(folder / "alone.npz"))]) as processes:
        for process in processes:
            scripts.finish(process)
    return {path.stem: dict(np.load(path)) for path in folder.glob("*.npz")}


@pytest.mark.parametrize("method", ["calibrated", "relaxed"])
def test_losses_are_those_of_one_process_with_the_same_batches(trained, method):
    for key in ("loss", "lambda") if method == "relaxed" else ("loss",):
        alone, two = (trained[name][f"{method}/{key}"] for name in ("alone", "worker0"))
        np.testing.assert_allclose(two, alone, rtol=2e-6, err_msg=f"{key}, side by side: {alone} {two}")


@pytest.mark.parametrize("method", ["calibrated", "relaxed"])
def test_variables_are_those_of_one_process(trained, method):
    names = [name for name in trained["alone"] if name.startswith(f"{method}/") and ":" in name]
    assert len(names) > 20
    for name in names:
        alone, two = trained["alone"][name], trained["worker0"][name]
        # Sums of the halves of a batch round otherwise.
        np.testing.assert_allclose(two, alone, rtol=1e-4, atol=1e-6, err_msg=name)


def test_all_workers_have_the_same_model(trained):
    """Those included that the first batches have set, of which each worker has seen other parts."""
    first, second = trained["worker0"], trained["worker1"]
    assert first.keys() == second.keys() == trained["alone"].keys()
    assert sum(name.startswith("first batches/") for name in first) > 20
    for name, value in first.items():
        np.testing.assert_array_equal(second[name], value, err_msg=name)


def test_a_lost_worker_ends_the_other_and_both_go_on_to_the_same_end(trained, tmp_path):
    with scripts.together(start_two(tmp_path, str(tmp_path), killed=1)) as (left, lost):
        for process in (lost, left):
            process.communicate(timeout=300)
        assert lost.returncode == -9
        assert left.returncode != 0, "a worker alone has trained on"
    assert not list(tmp_path.glob("*.npz"))
    with scripts.together(start_two(tmp_path, str(tmp_path))) as processes:
        for process in processes:
            scripts.finish(process)
    for worker in ("worker0", "worker1"):
        found = dict(np.load(tmp_path / f"{worker}.npz"))
        for name, value in trained[worker].items():
            if name.partition("/")[2] not in ("loss", "lambda"):  # They begin where training went on.
                np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert len(found["calibrated/loss"]) == 2
