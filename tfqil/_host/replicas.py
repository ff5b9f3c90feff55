"""Steps that several devices or processes take together."""

from __future__ import annotations

import collections.abc
import functools
from typing import Any

import tensorflow as tf
from tf_keras.src.utils import control_flow_util


def require_same_scope(layer: Any) -> None:
    """Raises one sentence where replicas run a layer that was created outside of their strategy.

    Raises:
        ValueError: its variables are on one device.
    """
    strategy = tf.distribute.get_strategy()
    if strategy.num_replicas_in_sync == 1 or tf.distribute.in_cross_replica_context():
        return
    if not all(map(strategy.extended.variable_created_in_scope, layer.weights)):
        raise ValueError(
            f"Got the layer {layer.name!r}, which was quantized outside of the scope of the {type(strategy).__name__} "
            "that trains it, expected the same: build, quantize and compile the model inside `with strategy.scope():`."
        )


def require_no_xla_of_cpus(*, training: bool) -> None:
    """Raises one sentence where XLA would compile a step that several CPUs take together, which it cannot do.

    Inference needs no exchange between workers: there the CPUs of one process count.

    Raises:
        ValueError: `jit_compile=True` in a strategy of several CPUs.
    """
    strategy = tf.distribute.get_strategy()
    if strategy.num_replicas_in_sync == 1 or tf.distribute.in_cross_replica_context():
        return
    devices = strategy.extended.worker_devices
    count = strategy.num_replicas_in_sync if training else len(devices)
    on_cpus = all(tf.DeviceSpec.from_string(device).device_type == "CPU" for device in devices)
    if count > 1 and on_cpus and control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()):
        raise ValueError(
            f"Got jit_compile=True in a {type(strategy).__name__} of {count} CPUs, expected a step without XLA, which "
            "compiles none of several CPUs, whatever the model: compile the model without jit_compile there."
        )


def update_copies(
    variables: collections.abc.Sequence[Any],
    update: collections.abc.Callable[..., None],
    values: collections.abc.Sequence[Any] | None = None,
) -> None:
    """Calls update(variable, copy) for the copy of each variable on each device; works inside a training step.

    With `values`, one tensor per variable, it calls update(variable, copy, value).
    """
    arguments = [()] * len(variables) if values is None else [(value,) for value in values]

    def update_all(strategy: Any, variables: Any, arguments: Any) -> None:
        for variable, args in zip(variables, arguments, strict=True):
            strategy.extended.update(variable, functools.partial(update, variable), args=args, group=False)

    strategy = tf.distribute.get_strategy()
    tf.__internal__.distribute.interim.maybe_merge_call(update_all, strategy, variables, arguments)
