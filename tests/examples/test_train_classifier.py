"""The protocol's command: its stages, a training that is killed and goes on, and what it refuses."""

from __future__ import annotations

import json
import pathlib
import re
import sys
from collections.abc import Sequence

import numpy as np
import pytest

import tfqil
from tests import scripts, workers

sys.path.append(str(scripts.ROOT / "examples"))
import devices
import fitting
import protocol
import runs

COMMAND = [
    "examples/train_classifier.py",
    "--data=digits",
    "--network=vgg11",
    "--width=0.0625",
    "--float_epochs=3",
    "--epochs=3",
    "--examples=256",
    "--deterministic",
]
SMALL = ["--schedule=32,4,2/4"]


def run(folder: pathlib.Path, *arguments: str) -> str:
    """What the command prints."""
    return scripts.run(*COMMAND, f"--directory={folder}", *arguments)


def refused(folder: pathlib.Path, *arguments: str) -> str:
    """The sentence that the command ends with."""
    return scripts.refused(*COMMAND, f"--directory={folder}", *arguments)


def two_workers(folder: pathlib.Path) -> list[scripts.Process]:
    """The command on two workers, which share each batch."""
    arguments = [*COMMAND, f"--directory={folder}", "--schedule=32,2/4", "--epochs=2", "--strategy=multi_worker"]
    return [scripts.start(*arguments, environment=environment) for environment in workers.cluster()]


def require_same_stages(one: pathlib.Path, other: pathlib.Path, stages: Sequence[str]) -> None:
    """Raises unless two runs have the same variables and logs, bit for bit."""
    for stage in stages:
        first, second = (tfqil.load_model(run / stage / "model.keras", compile=False) for run in (one, other))
        for expected, variable in zip(first.variables, second.variables, strict=True):
            np.testing.assert_array_equal(variable.numpy(), expected.numpy(), err_msg=variable.name)
        assert (one / stage / "history.json").read_text() == (other / stage / "history.json").read_text()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, run(folder, *SMALL)


@pytest.mark.recipe
class TestRun:
    def test_every_stage_leaves_a_model_a_file_and_a_record(self, finished):
        folder, printed = finished
        for stage, integer_only in (("float", False), ("4_4", True), ("2_4", True)):
            record = json.loads((folder / stage / "record.json").read_text())
            assert record["integer_only"] == integer_only
            assert record["epochs"] == 3
            assert record["bytes"] == (folder / stage / "model.tflite").stat().st_size
            assert f"{record['file_accuracy']:.2f}" in printed
            assert abs(record["file_accuracy"] - record["keras_accuracy"]) < 1
            assert sorted(path.name for path in (folder / stage).iterdir()) == [
                "history.json", "model.keras", "model.tflite", "record.json",
            ]  # fmt: skip
        placements = tfqil.placements(tfqil.load_model(folder / "2_4" / "model.keras", compile=False))
        assert {row.bits for row in placements if row.reason == "config of the scheme"} == {2}

    def test_a_killed_training_ends_as_one_that_was_not(self, finished, tmp_path):
        scripts.kill_when((tmp_path / "4_4" / "history.json").is_file, *COMMAND, f"--directory={tmp_path}", *SMALL)
        assert not (tmp_path / "4_4" / "record.json").exists()
        run(tmp_path, *SMALL)
        require_same_stages(finished[0], tmp_path, ("float", "4_4", "2_4"))

    def test_a_longer_schedule_goes_on(self, finished):
        folder, _ = finished
        before = (folder / "4_4" / "model.keras").stat().st_mtime_ns
        printed = run(folder, "--schedule=32,4,2/4,2/2")
        assert "2/2" in printed
        assert (folder / "4_4" / "model.keras").stat().st_mtime_ns == before

    @pytest.mark.parametrize(
        ("argument", "message"),
        [
            ("--width=0.125", r"Got --width=0.125 for the run in .*, which has 0.0625, expected the same settings"),
            ("--schedule=32,3/4,2/4", r"Got --schedule="),
            ("--method=lbw", r"Got --method=lbw"),
        ],
    )
    def test_a_run_of_other_settings_is_not_touched(self, finished, argument, message):
        folder, _ = finished
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        assert re.search(message, refused(folder, *SMALL, argument))
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before

    @pytest.mark.parametrize(
        "arguments",
        [["--strategy=mirrored", "--mixed_precision=bfloat16"], ["--jit", "--nodeterministic"]],
        ids=lambda given: given[0],
    )
    def test_the_ways_to_train_end_in_files(self, tmp_path, arguments):
        arguments = ["--schedule=32,2", "--float_epochs=1", "--epochs=1", *arguments]
        printed = run(tmp_path, *arguments)
        assert printed.count("yes") == 1, "the quantized file is integer-only"
        for stage in ("float", "2_2"):
            assert (tmp_path / stage / "model.tflite").is_file()

    def test_two_workers_of_which_one_is_lost_go_on_to_the_end_of_two_that_were_not(self, tmp_path):
        whole, lost = tmp_path / "whole", tmp_path / "lost"
        with scripts.together(two_workers(whole)) as processes:
            printed = [scripts.finish(process) for process in processes]
        assert "2/4" in printed[0] and not printed[1], "the chief alone prints"

        with scripts.together(two_workers(lost)) as processes:
            scripts.wait_until((lost / "2_4" / "history.json").is_file, processes)
            processes[1].kill()
            for process in processes:
                process.communicate(timeout=300)
        assert not (lost / "2_4" / "record.json").exists()
        with scripts.together(two_workers(lost)) as processes:
            for process in processes:
                scripts.finish(process)
        require_same_stages(whole, lost, ("float", "2_4"))

    def test_what_cannot_go_together_is_refused(self, tmp_path):
        assert "Got --jit and --deterministic" in refused(tmp_path, *SMALL, "--float_epochs=1", "--jit")
        assert "Got --jit with --strategy=mirrored on CPUs" in refused(tmp_path, "--jit", "--strategy=mirrored")
        assert "Got --strategy=multi_worker with TF_CONFIG=''" in refused(tmp_path, "--strategy=multi_worker")

    @pytest.mark.parametrize(
        "description",
        [
            "{",
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": -1}}',
            '{"cluster": {"chief": ["a:1"], "worker": ["b:1"]}, "task": {"type": "chief", "index": 0}}',
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "evaluator", "index": 0}}',
        ],
    )
    def test_a_cluster_of_other_kinds_of_processes_is_refused(self, description):
        with pytest.raises(ValueError, match="Got --strategy=multi_worker with TF_CONFIG="):
            devices._require_cluster(description)

    def test_workers_without_a_common_folder_are_refused(self, tmp_path):
        with pytest.raises(ValueError, match="where worker 0 has noted no run, expected one that all machines share"):
            runs.require_same_run(tmp_path / "own", {"seed": 1}, creates=False)
        assert not (tmp_path / "own").exists()

    def test_a_network_for_other_images_is_refused_before_anything_is_written(self, tmp_path):
        sentence = refused(tmp_path / "run", *SMALL, "--network=resnet18")
        assert "Got resnet18 for images of 8 x 8 x 1" in sentence
        assert not (tmp_path / "run").exists()

    def test_a_folder_of_something_else_is_not_touched(self, tmp_path):
        (tmp_path / "thesis.txt").write_text("all of it")
        assert "which holds no run, expected an empty one" in refused(tmp_path, *SMALL)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


class TestSchedule:
    def test_stages(self):
        stages = protocol.parse_schedule(["32", "4/8", "2/8"])
        assert [stage.name for stage in stages] == ["float", "4_8", "2_8"]

    @pytest.mark.parametrize(
        ("schedule", "message"),
        [
            ("32,4,5", "goes from 4/4 to 5/5 bits, expected fewer bits in every stage"),
            ("32,4/4,3/8", "goes from 4/4 to 3/8 bits"),
            ("32,4,4", "goes from 4/4 to 4/4 bits"),
            ("5,4", "expected one that begins with 32"),
            ("32,four", "Got the stage 'four'"),
            ("32,4/8/2", "Got the stage '4/8/2'"),
        ],
    )
    def test_a_schedule_that_makes_no_sense_is_refused(self, schedule, message):
        with pytest.raises(ValueError, match=message):
            protocol.parse_schedule(schedule.split(","))

    def test_widths_that_a_method_does_not_have_are_refused(self):
        with pytest.raises(ValueError, match="weight_bits"):
            protocol.config_for("lbw", protocol.Widths(weights=7, activations=4))

    def test_the_papers_drop_their_rates_where_they_say(self):
        settings = protocol.SETTINGS["imagenet2012"]
        rates = fitting.rates(settings.rate, settings.drops, 90 * 10)
        at = [float(rates(epoch * 10 + 5)) for epoch in (0, 19, 20, 39, 40, 60, 80, 89)]
        np.testing.assert_allclose(at, [0.04, 0.04, 4e-3, 4e-3, 4e-4, 4e-5, 4e-6, 4e-6], rtol=1e-5)
