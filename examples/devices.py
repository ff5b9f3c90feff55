"""The devices of a training: one, those of a machine, or those of several machines that train one model together."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator

import tensorflow as tf

NAMES = ("none", "mirrored", "multi_worker")


def strategy(name: str) -> tf.distribute.Strategy:
    """One of `NAMES`; before anything else of TensorFlow, as several machines need it.

    Raises:
        ValueError: several machines without a description of them.
    """
    if name == "mirrored":
        return tf.distribute.MirroredStrategy()
    if name == "multi_worker":
        _require_cluster(os.environ.get("TF_CONFIG", ""))
        return tf.distribute.MultiWorkerMirroredStrategy()
    return tf.distribute.get_strategy()


def _require_cluster(description: str) -> None:
    try:
        found = json.loads(description)
        task, workers = found["task"], found["cluster"]["worker"]
        known = (
            set(found["cluster"]) == {"worker"} and task["type"] == "worker" and task["index"] in range(len(workers))
        )
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise ValueError(
            f"Got --strategy=multi_worker with TF_CONFIG={description!r}, expected the workers and which of them this "
            'one is: \'{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}\'.'
        )


def is_chief(devices: tf.distribute.Strategy) -> bool:
    """Whether this process, worker 0, writes what all of them have in common: files, and what is printed."""
    resolver = devices.cluster_resolver
    return resolver is None or not resolver.cluster_spec() or resolver.task_id == 0


@contextlib.contextmanager
def written_by_chief(devices: tf.distribute.Strategy, folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """The folder to write to: that of the chief, for the others one that is thrown away.

    What is written is read from all replicas, so that every process has to write.
    """
    if is_chief(devices):
        yield folder
    else:
        with tempfile.TemporaryDirectory() as unused:
            yield pathlib.Path(unused)


def wait(devices: tf.distribute.Strategy) -> None:
    """Returns when all processes are here."""

    def one() -> tf.Tensor:
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.constant(1.0))

    if devices.num_replicas_in_sync > 1:
        devices.run(tf.function(one))


@contextlib.contextmanager
def chief_first(devices: tf.distribute.Strategy) -> Iterator[None]:
    """Lets the chief do something before the others, which then find what it has left, even if it raised an error."""
    if not is_chief(devices):
        wait(devices)
    try:
        yield
    finally:
        if is_chief(devices):
            wait(devices)


def batches(
    devices: tf.distribute.Strategy, train: Callable[..., tf.data.Dataset], epoch: int
) -> tuple[tf.data.Dataset | tf.distribute.DistributedDataset, int | None]:
    """The batches of an epoch, of which each process makes its own part only; for several devices, how many there are.

    Args:
        devices: of the model.
        train: the batches from the number of the epoch, and the part from a `tf.distribute.InputContext`.
        epoch: its number.
    """
    if devices.num_replicas_in_sync == 1:
        return train(epoch), None
    steps = int(train(epoch).cardinality())
    return devices.distribute_datasets_from_function(lambda context: train(epoch, context)), steps
