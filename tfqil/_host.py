"""The host: tf_keras and the corners of it that this package stands on.

The only file that imports tf_keras, and the only one that knows what differs between Keras versions. Importing it
imports TFMOT first, which selects the Keras that TFMOT itself uses.
"""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import functools
import math
import re
import threading
from typing import Any

import tensorflow as tf
import tensorflow_model_optimization  # noqa: F401  (selects tf_keras as the Keras of TFMOT)
import tf_keras as keras
from tf_keras.src.layers.core import tf_op_layer
from tf_keras.src.utils import control_flow_util

Layer = keras.layers.Layer
Model = keras.Model
Callback = keras.callbacks.Callback
# What Keras makes of calls of TensorFlow functions in a functional graph.
_TFCall = tf_op_layer.TFOpLambda
Optimizer = keras.optimizers.Optimizer
# Inputs, labels and weights of what `fit` hands to a step.
unpack = keras.utils.unpack_x_y_sample_weight

# `.keras`, `.h5` and SavedModel all read the legacy form of a nested object; `.h5` does not read the newer one.
serialize_object = keras.utils.legacy.serialize_keras_object
deserialize_object = keras.utils.legacy.deserialize_keras_object


def serializable(cls: type) -> type:
    """Registers a class with Keras, so that models that hold it load without a custom-object scope."""
    registered: type = keras.saving.register_keras_serializable(package="tfqil")(cls)
    return registered


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """One call of a layer in a functional graph; tensors are named by numbers."""

    layer: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    keras_node: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Graph:
    """The calls of a functional or Sequential model in an order in which they can run."""

    nodes: tuple[Node, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def producer(self, tensor: int) -> Node:
        """The call that made a tensor."""
        return self._producers[tensor]

    def readers(self, tensor: int) -> tuple[Node, ...]:
        """The calls that read a tensor, each once."""
        return tuple(self._readers.get(tensor, ()))

    @functools.cached_property
    def _producers(self) -> dict[int, Node]:
        return {tensor: node for node in self.nodes for tensor in node.outputs}

    @functools.cached_property
    def _readers(self) -> dict[int, list[Node]]:
        readers: dict[int, list[Node]] = {}
        for node in self.nodes:
            for tensor in dict.fromkeys(node.inputs):
                readers.setdefault(tensor, []).append(node)
        return readers


def require_functional(model: Any) -> None:
    """Raises one sentence for anything but a built functional or Sequential tf_keras model."""
    if not isinstance(model, keras.Model):
        if type(model).__module__.partition(".")[0] == "keras":
            raise TypeError(
                f"Got a Keras 3 model ({type(model).__name__} of package keras), expected a tf_keras model: "
                "rebuild it with tfqil.from_keras3(model), since TFMOT takes no other."
            )
        raise TypeError(f"Got {type(model).__name__}, expected a tf_keras Functional or Sequential model.")
    if isinstance(model, keras.Sequential) and not model.built:
        raise ValueError(
            f"Got the unbuilt Sequential model {model.name!r}, expected a built one: give it an Input layer or call "
            "model.build(input_shape) first."
        )
    if not getattr(model, "_is_graph_network", False):
        raise TypeError(
            f"Got the subclassed model {model.name!r} ({type(model).__name__}), expected a Functional or Sequential "
            "one: rebuild it with the functional API, whose layers can be seen and replaced."
        )


def graph_of(model: Any) -> Graph:
    """Reads the calls of a functional or Sequential model, inputs first."""
    by_depth = model._nodes_by_depth
    keras_nodes = [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]
    numbers: dict[str, int] = {}

    def number(identifiers: Any) -> tuple[int, ...]:
        return tuple(numbers.setdefault(str(identifier), len(numbers)) for identifier in identifiers)

    nodes = []
    for keras_node in keras_nodes:
        inputs = () if keras_node.is_input else number(keras_node.flat_input_ids)
        outputs = number(keras_node.flat_output_ids)
        nodes.append(Node(layer=keras_node.layer, inputs=inputs, outputs=outputs, keras_node=keras_node))
    identifiers = [[str(id(t)) for t in keras_tensors] for keras_tensors in (model.inputs, model.outputs)]
    return Graph(nodes=tuple(nodes), inputs=number(identifiers[0]), outputs=number(identifiers[1]))


Call = collections.abc.Callable[[Node, list[Any]], Any]


def replay(model: Any, call: Call, *, finish: collections.abc.Callable[[Any], Any] = lambda output: output) -> Any:
    """Builds a functional model by running the graph of another one with other calls.

    Args:
        model: a functional or Sequential model.
        call: takes a node and its new inputs, returns its new outputs (one or a list): tensors, or any values that
            other calls understand. For the node of a model input it takes the new input itself.
        finish: takes a value that is an output of the model, returns its tensor.

    Returns:
        A functional model with inputs of the same names, shapes and dtypes, and the same structure of outputs.
    """
    graph = graph_of(model)
    tensors: dict[int, Any] = {}
    inputs: dict[int, Any] = {}
    for node in graph.nodes:
        if node.keras_node.is_input:
            arriving = inputs[node.outputs[0]] = _same_input(node.layer)
            new = call(node, [arriving])
        else:
            new = call(node, [tensors[number] for number in node.inputs])
        tensors.update(zip(node.outputs, as_list(new), strict=True))
    arriving = [inputs[number] for number in graph.inputs]
    outputs = [finish(tensors[number]) for number in graph.outputs]
    return keras.Model(
        _structured(model._nested_inputs, arriving), _structured(model._nested_outputs, outputs), name=model.name
    )


def evaluate(model: Any, inputs: list[Any], call: Call) -> list[Any]:
    """Runs the graph of a model on eager tensors, one call after the other, and returns its outputs.

    Unlike a functional call it leaves no trace in the layers. `call` is as in `replay`, without the input nodes.
    """
    graph = graph_of(model)
    tensors = dict(zip(graph.inputs, inputs, strict=True))
    for node in graph.nodes:
        if not node.keras_node.is_input:
            outputs = call(node, [tensors[number] for number in node.inputs])
            tensors.update(zip(node.outputs, as_list(outputs), strict=True))
    return [tensors[number] for number in graph.outputs]


def _same_input(layer: Any) -> Any:
    shape = layer.input_shape[0] if isinstance(layer.input_shape, list) else layer.input_shape
    return keras.Input(batch_shape=shape, dtype=layer.dtype, name=layer.name)


def scope_name(name: str) -> str:
    """A layer name that TensorFlow takes for a scope; inputs may have others."""
    return re.sub(r"[^A-Za-z0-9_.\\/>-]", "_", name)


def as_list(value: Any) -> list[Any]:
    """A value alone, or the values of any structure in the order of `tf.nest`."""
    if isinstance(value, (list, tuple, dict)):
        return tf.nest.flatten(value)  # type: ignore[no-any-return]
    return [value]


def _structured(structure: Any, tensors: list[Any]) -> Any:
    """The tensors in the structure of others; a list of one alone, as Keras returns it."""
    if len(tensors) == 1 and not isinstance(structure, dict):
        return tensors[0]
    return tf.nest.pack_sequence_as(structure, tensors)


def arguments_of(node: Node, tensors: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that a layer had in a node, with new tensors."""
    queues: dict[str, list[Any]] = {}  # A layer may read a tensor more than once; Keras takes one entry for each time.
    for old, new in zip(node.keras_node.flat_input_ids, tensors, strict=True):
        queues.setdefault(str(old), []).append(new)
    arguments, keywords = node.keras_node.map_arguments(queues)
    return tuple(arguments), keywords


def run_as_before(node: Node, layer: Any, tensors: list[Any]) -> Any:
    """Calls a layer on new tensors with the arguments that it had in a node."""
    arguments, keywords = arguments_of(node, tensors)
    return layer(*arguments, **keywords)


def has_output_shape(node: Node, tensor: Any) -> bool:
    """Whether a tensor has the shape of the output of a node."""
    (expected,) = (output.shape for output in tf.nest.flatten(node.keras_node.outputs))
    return bool(tensor.shape.is_compatible_with(expected))


def keyword(node: Node, name: str, default: Any) -> Any:
    """The value of a keyword argument in a call of a functional graph."""
    return node.keras_node.call_kwargs.get(name, default)


def is_symbolic(value: Any) -> bool:
    """Whether a value is a tensor of a functional graph."""
    return tf.is_tensor(value) and bool(keras.backend.is_keras_tensor(value))


def is_floating(node: Node) -> bool:
    """Whether the outputs of a node are floats."""
    return all(tensor.dtype.is_floating for tensor in tf.nest.flatten(node.keras_node.outputs))


def is_inferring_shapes() -> bool:
    """Whether Keras calls a layer only to see the shape of its output, in a graph that it throws away."""
    return not tf.executing_eagerly() and tf.compat.v1.get_default_graph().name.endswith("_scratch_graph")


def joint_mask(masks: Any) -> Any:
    """A mask of time steps that is true where all of several are; None without any."""
    given = [mask for mask in as_list(masks) if mask is not None]
    return functools.reduce(tf.logical_and, given) if given else None


def with_mask(tensor: Any, source: Any) -> Any:
    """A tensor with the mask of another one, as Keras hands masks on beside tensors."""
    mask = getattr(source, "_keras_mask", None)
    if mask is not None and tensor is not source:
        tensor._keras_mask = mask
    return tensor


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


def inputs_in_order(model: Any, arguments: tuple[Any, ...]) -> list[Any]:
    """What a model is called on, in the order of its inputs."""
    return list(model._flatten_to_reference_inputs(arguments[0]))


def function_of(layer: Any) -> str | None:
    """The name of the TensorFlow function that a layer of a plain call stands for, as in "nn.relu"; None without."""
    return str(layer.get_config()["function"]) if isinstance(layer, _TFCall) else None


def unannotated(layer: Any) -> Any:
    """The layer inside the annotation of TFMOT's `quantize_annotate_layer`; the layer itself without one."""
    return layer.layer if type(layer).__name__ == "QuantizeAnnotate" else layer


def annotated_config(layer: Any) -> Any:
    """The config of TFMOT's `quantize_annotate_layer`; None without one."""
    return layer.quantize_config if type(layer).__name__ == "QuantizeAnnotate" else None


def latest_node(layer: Any, **keywords: Any) -> Any:
    """The latest call of a layer in a functional graph with the given keywords; None without one."""
    for node in reversed(layer.inbound_nodes):
        if all(node.call_kwargs.get(name) == value for name, value in keywords.items()):
            return node
    return None


def producer_of(tensor: Any) -> Any:
    """The call that made a tensor of a functional graph."""
    history = tensor._keras_history
    return history.layer.inbound_nodes[history.node_index]


def nodes_before(node: Any) -> list[Any]:
    """The calls whose outputs a call in a functional graph reads."""
    return list(node.parent_nodes)


def set_owner(variable: Any, layer: Any) -> None:
    """Notes on a variable which layer quantizes it.

    Optimizers see variables only, and one that Keras loads from a file knows no model.
    """
    variable.tfqil_owner = layer


def owner(variable: Any) -> Any:
    """The layer that `set_owner` noted on a variable; None without one."""
    return getattr(variable, "tfqil_owner", None)


def set_note(model: Any, name: str, value: Any) -> None:
    """Keeps a value with a model in this process; files do not hold it."""
    vars(model)[f"_tfqil_{name}"] = value


def note(model: Any, name: str, default: Any) -> Any:
    """The value that `set_note` kept with a model."""
    return vars(model).get(f"_tfqil_{name}", default)


def mark_intervals(variables: collections.abc.Iterable[Any]) -> None:
    """Notes on variables that they are what a quantizer learns; values that are no trainable variables are left out."""
    for variable in variables:
        if isinstance(variable, tf.Variable) and variable.trainable:
            variable.tfqil_is_interval = True


def is_interval(variable: Any) -> bool:
    """Whether `mark_intervals` noted that a quantizer learns a variable."""
    return getattr(variable, "tfqil_is_interval", False)


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


def average_of(optimizer: Any, variable: Any) -> tuple[Any, float] | None:
    """The moving average that an optimizer with `use_ema` keeps of a variable, and its momentum; None without one."""
    optimizer = _innermost(optimizer)
    if not optimizer.use_ema:
        return None
    number = optimizer._index_dict[optimizer._var_key(variable)]
    return optimizer._model_variables_moving_average[number], float(optimizer.ema_momentum)


def overwrites_with_average(optimizer: Any) -> bool:
    """Whether an optimizer sets variables to their moving averages during training, not only at its end."""
    optimizer = _innermost(optimizer)
    return bool(optimizer.use_ema and optimizer.ema_overwrite_frequency)


def _innermost(optimizer: Any) -> Any:
    """The optimizer inside all wrappers, which has the state."""
    return _innermost(optimizer.inner) if isinstance(optimizer, WrappingOptimizer) else optimizer


def channel_shape(layer: Any, kernel_shape: collections.abc.Sequence[int]) -> tuple[int, ...]:
    """The trailing part of a kernel's shape that numbers its output channels.

    (O,) for (kh, kw, I, O) and (I, O); (C, M) for the depthwise kernel (kh, kw, C, M). Of a transposed convolution
    it is that of the kernel with its channels last.
    """
    if is_transposed(layer):
        return (int(kernel_shape[-2]),)
    trailing = 2 if isinstance(layer, keras.layers.DepthwiseConv2D) else 1
    return tuple(int(size) for size in kernel_shape[-trailing:])


def kernel_name(layer: Any) -> str | None:
    """The attribute that holds what a layer multiplies by: its kernel, or a PReLU's slopes; None for other layers."""
    if type(layer) is keras.layers.DepthwiseConv2D:
        return "depthwise_kernel"
    if type(layer) is keras.layers.PReLU:
        return "alpha"
    if type(layer) in (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv2DTranspose, keras.layers.Dense):
        return "kernel"
    return None


def is_wrapped_kernel(layer: Any) -> bool:
    """Whether a layer is a wrapper that quantizes the kernel of one that multiplies by it."""
    return hasattr(layer, "weight_quantizer") and hasattr(layer.layer, "use_bias")


def is_transposed(layer: Any) -> bool:
    """Whether the kernel of a layer has its output channels before its input channels: (kh, kw, O, I)."""
    return isinstance(layer, keras.layers.Conv2DTranspose)


def with_channels_last(layer: Any, kernel: Any) -> Any:
    """A kernel of a layer with its output channels on the last axes; given such a one, the kernel again."""
    return tf.transpose(kernel, [0, 1, 3, 2]) if is_transposed(layer) else kernel


def multiplications(wrapper: Any, nodes: collections.abc.Sequence[Any]) -> int | None:
    """How many products with its kernel a wrapped layer computes for one example in its calls; None if a size is open.

    The weights of the kernel, once for each position of the output (of the input, if the convolution is transposed).
    """
    layer = wrapper.layer
    if kernel_name(layer) == "alpha":
        return None
    shapes = [(node.input_shapes if is_transposed(layer) else node.output_shapes)[1:-1] for node in nodes]
    kernel = getattr(layer, str(kernel_name(layer))).shape.num_elements()
    return None if any(None in shape for shape in shapes) else int(kernel) * sum(map(math.prod, shapes))


# Two threads that run one model would else find each other's kernels in its layers, and put those back for good.
_REPLACING = threading.RLock()


@contextlib.contextmanager
def kernel_replaced(layer: Any, value: Any) -> collections.abc.Iterator[None]:
    """Lets a layer compute with another kernel for a while, in one thread at a time."""
    # Not by `setattr`: Keras would forget the variable, and append it behind the others when it comes back.
    attributes, name = vars(layer), kernel_name(layer)
    with _REPLACING:
        variable = attributes[name]
        attributes[name] = value
        try:
            yield
        finally:
            attributes[name] = variable


class WrappingOptimizer(tf.__internal__.tracking.DelegatingTrackableMixin, Optimizer):  # type: ignore[misc, valid-type]
    """An optimizer around another one, whose state it shares; checkpoints of either load into the other.

    Built as Keras's own LossScaleOptimizer is: without `Optimizer.__init__`, which would create state of its own.
    """

    @tf.__internal__.tracking.no_automatic_dependency_tracking
    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.name = inner.name
        self._mesh, self._run_with_dtensor = inner._mesh, inner._run_with_dtensor
        tf.__internal__.tracking.DelegatingTrackableMixin.__init__(self, inner)

    def build(self, var_list: collections.abc.Sequence[Any]) -> None:
        """Creates the state of the inner optimizer."""
        self.inner.build(var_list)

    def compute_gradients(self, loss: Any, var_list: Any, tape: Any = None) -> Any:
        """Those of the inner optimizer."""
        return self.inner.compute_gradients(loss, var_list, tape)

    def apply_gradients(self, grads_and_vars: Any, *args: Any, **kwargs: Any) -> Any:
        """The step of the inner optimizer; arguments as there."""
        return self.inner.apply_gradients(grads_and_vars, *args, **kwargs)

    def aggregate_gradients(self, grads_and_vars: Any) -> Any:
        """As the inner optimizer does."""
        return self.inner.aggregate_gradients(grads_and_vars)

    def finalize_variable_values(self, var_list: Any) -> None:
        """As the inner optimizer does, at the end of training."""
        self.inner.finalize_variable_values(var_list)

    @property
    def iterations(self) -> Any:
        """The count of steps."""
        return self.inner.iterations

    @iterations.setter
    def iterations(self, variable: Any) -> None:
        self.inner.iterations = variable

    @property
    def learning_rate(self) -> Any:
        """That of the inner optimizer."""
        return self.inner.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        self.inner.learning_rate = learning_rate

    @property
    def _learning_rate(self) -> Any:
        """That of the inner optimizer, or its schedule, which the TensorBoard callback looks for."""
        return self.inner._learning_rate

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        """Excludes variables from the weight decay of the inner optimizer."""
        self.inner.exclude_from_weight_decay(var_list, var_names)

    @property
    def variables(self) -> Any:
        """The state of the inner optimizer."""
        return self.inner.variables

    def set_weights(self, weights: Any) -> None:
        """Sets the state of the inner optimizer, as loading `.h5` does."""
        self.inner.set_weights(weights)
