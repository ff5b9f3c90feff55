"""A function that a graph holds once, and that computes the same as one that is written out."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfqil.numerics.held_once import held_once


def quadratic(x: tf.Tensor, offset: float | None = None) -> tf.Tensor:
    return x * x + 1.0 if offset is None else x * x + offset


def test_calls_share_one_function_in_a_graph():
    once = held_once(quadratic)

    @tf.function
    def total(x: tf.Tensor) -> tf.Tensor:
        return tf.add_n([once(x + float(number)) for number in range(20)])

    graph = total.get_concrete_function(tf.TensorSpec((), tf.float32)).graph
    called = [op.get_attr("f").name for op in graph.get_operations() if op.type == "PartitionedCall"]
    assert len(called) == 20 and len(set(called)) == 1
    assert not [op for op in graph.get_operations() if op.type == "Mul"]
    (definition,) = [f for f in graph.as_graph_def().library.function if f.signature.name == called[0]]
    assert definition.attr["_noinline"].b  # Or the optimizer writes it out again.


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("offset", [None, 3.0])
def test_values_and_gradients_are_those_of_the_function(jit, offset):
    once = held_once(quadratic)

    @tf.function(jit_compile=jit)
    def with_gradient(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = once(x, offset)
        return value, tape.gradient(value, x)

    value, gradient = with_gradient(tf.constant([1.0, -2.0]))
    np.testing.assert_array_equal(value, np.array([1, 4]) + (1.0 if offset is None else offset))
    np.testing.assert_array_equal(gradient, [2, -4])


def test_nothing_is_traced_without_a_graph():
    traced = []

    def noted(x: tf.Tensor) -> tf.Tensor:
        traced.append(not tf.executing_eagerly())
        return x + 1.0

    once = held_once(noted)
    for size in range(1, 8):
        assert once(tf.zeros(size)).shape == size
    assert traced == [False] * 7


def test_arguments_may_have_names():
    once = held_once(quadratic)
    in_graph = tf.function(lambda: once(tf.constant(2.0), offset=3.0))
    assert float(in_graph()) == float(once(tf.constant(2.0), offset=3.0)) == 7


def test_a_signature_lets_shapes_share_the_function():
    traced = []

    def noted(x: tf.Tensor) -> tf.Tensor:
        traced.append(x.shape)
        return tf.reduce_sum(x)

    once = held_once(noted, [tf.TensorSpec([None], tf.float32)])
    both = tf.function(lambda: (once(tf.ones(3)), once(tf.ones(5))))
    assert [float(value) for value in both()] == [3.0, 5.0] and len(traced) == 1
