"""What layers are and do, and copies of them."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfqil._host.framework import Layer, keras


def reads_mask(layer: Any) -> bool:
    """Whether the result of a layer depends on a mask that comes beside a tensor that it was called on."""
    if not layer._expects_mask_arg:
        return False
    tensors = [tensor for node in layer.inbound_nodes for tensor in node.keras_inputs]
    return any(getattr(tensor, "_keras_mask", None) is not None for tensor in tensors)


def reads_integers(layer: Any) -> bool:
    """Whether a layer makes floats of integers in a functional graph."""
    return any(
        tensor.dtype.is_floating and not all(read.dtype.is_floating for read in node.keras_inputs)
        for node in layer.inbound_nodes
        for tensor in tf.nest.flatten(node.outputs)
    )


def always_trains(layer: Any) -> bool:
    """Whether a call in a functional graph has training=True, which then holds in inference too."""
    calls = [(node.call_args[1:], node.call_kwargs.get("training")) for node in layer.inbound_nodes]
    # By identity: a symbolic tensor among the arguments, as of attention, cannot be compared.
    return any(value is True for positional, keyword in calls for value in (*positional, keyword))


def is_recurrent(layer: Any) -> bool:
    """Whether a layer, or one inside it, loops over time."""
    return any(isinstance(part, (keras.layers.RNN, keras.layers.Bidirectional)) for part in layer._flatten_layers())


def batch_norms(model: Any) -> list[Any]:
    """The batch normalizations of a model whose statistics follow the data in training."""
    norms = (layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization))
    return [layer for layer in norms if layer.trainable]


def copy_state(layer: Any, copy: Any) -> None:
    """Gives a copy of a layer its weights, and what is frozen in it, inner layers included."""
    copy_trainable(layer, copy)
    copy.set_weights(layer.get_weights())


def copy_trainable(layer: Any, copy: Any) -> None:
    """Freezes in a copy of a layer what is frozen in it, inner layers included."""
    for source, target in zip(layer._flatten_layers(), copy._flatten_layers(), strict=False):
        target._trainable = source._trainable  # Not by the setter, which would reach the inner layers too.


def is_layer(value: Any) -> bool:
    """Whether something is a layer, such as an activation may be."""
    return isinstance(value, Layer)


def is_model(layer: Any) -> bool:
    """Whether a layer is a functional or Sequential model."""
    return isinstance(layer, keras.Model) and bool(getattr(layer, "_is_graph_network", False))


def unannotated(layer: Any) -> Any:
    """The layer inside the annotation of TFMOT's `quantize_annotate_layer`; the layer itself without one."""
    return layer.layer if type(layer).__name__ == "QuantizeAnnotate" else layer


def annotated_config(layer: Any) -> Any:
    """The config of TFMOT's `quantize_annotate_layer`; None without one."""
    return layer.quantize_config if type(layer).__name__ == "QuantizeAnnotate" else None
