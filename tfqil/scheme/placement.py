"""The placement rules: which tensor of a model gets which quantizer, and why.

1. Layers with a kernel take the weight quantizer of their config, edges 8 bits (`edge_bits`).
2. A tensor is quantized once, where it is produced, behind its batch norm and activation function: with the
   activation quantizer that its readers ask for if they all ask for the same and it is non-negative, else with 8 bits.
3. Readers that ask for fewer bits than an 8-bit tensor has share one quantizer between the tensor and them.
4. Value-keeping layers pass the grid on; what reads them counts as reading their input.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tfqil import _host
from tfqil.quantizers import (
    ActivationQuantizer,
    FixedActivationQuantizer,
    MaxAbsWeightQuantizer,
    RangeActivationQuantizer,
    WeightQuantizer,
)
from tfqil.scheme.config import LowBitQuantizeConfig
from tfqil.scheme.kinds import (
    LOOKUP_GRIDS,
    Kind,
    activation_name,
    has_kernel,
    has_known_activation,
    kind_of,
    supported_layers,
)

_EIGHT = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """A quantizer and the reason for it."""

    quantizer: Any
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Every decision about a model.

    Attributes:
        kernels: layer name -> choice of the weight quantizer.
        tensors: tensor number -> choice of the activation quantizer where the tensor is produced.
        between: (tensor number, reader's name) -> choice between the tensor and that reader.
        absorbed: names of the ReLU and ReLU6 layers that a quantizer replaces.
    """

    kernels: Mapping[str, Choice]
    tensors: Mapping[int, Choice]
    between: Mapping[tuple[int, str], Choice]
    absorbed: frozenset[str]


def require_known_layers(model: Any) -> None:
    """Raises one sentence that lists every layer of a model whose arithmetic is not known."""
    problems = [
        f"{layer.name!r} ({problem})" for layer in map(_host.unannotated, model.layers) if (problem := _problem(layer))
    ]
    problems += [
        f"{name!r} (input of dtype {tensor.dtype.name})"
        for name, tensor in zip(model.input_names, model.inputs, strict=True)
        if not tensor.dtype.is_floating
    ]
    if problems:
        raise ValueError(
            f"Got layers that tfqil cannot quantize: {', '.join(problems)}; expected {supported_layers()}: replace "
            "them, or quantize the part of the model without them."
        )


def _problem(layer: Any) -> str | None:
    """What is wrong with a layer, in a few words; None if nothing is."""
    kind, name = kind_of(layer), type(layer).__name__
    if kind is None and not has_kernel(layer):
        return name
    if getattr(layer, "data_format", None) == "channels_first":
        return f"{name} with data_format='channels_first'"
    if has_kernel(layer):
        if not has_known_activation(layer):
            return f"{name} with activation {activation_name(layer)!r}"
        return _convolution_problem(layer, name)
    if kind is Kind.AVERAGE_POOL and not _pools_whole_windows(layer):
        return f"{name} whose windows reach over the border, or with two different strides"
    return None


def _convolution_problem(layer: Any, name: str) -> str | None:
    if getattr(layer, "groups", 1) != 1:
        return f"{name} with groups={layer.groups}"
    if "Depthwise" in name or "Separable" in name:
        if max(layer.dilation_rate) > 1:
            return f"{name} with dilation_rate={layer.dilation_rate}"
        if len(set(layer.strides)) > 1:
            return f"{name} with two different strides"
    return None


def _pools_whole_windows(layer: Any) -> bool:
    """Whether every window of an average pooling lies inside the image, so that all count as many pixels."""
    if len(set(layer.strides)) > 1:
        return False
    sizes = layer.input_shape[1:3]
    tiles = all(size is not None and size % pool == 0 for size, pool in zip(sizes, layer.pool_size, strict=True))
    return layer.padding == "valid" or (tuple(layer.strides) == tuple(layer.pool_size) and tiles)


class Planner:
    """Applies the rules to the graph of an expanded model."""

    def __init__(
        self, model: Any, configs: Mapping[str, LowBitQuantizeConfig], default: LowBitQuantizeConfig, edge_bits: Any
    ) -> None:
        self._model = model
        self._graph = _host.graph_of(model)
        self._configs = configs
        self._default = default
        self._edge_bits = edge_bits
        self._kinds = {node.layer.name: kind_of(node.layer) for node in self._graph.nodes}
        self._edges = self._find_edges()

    def plan(self) -> Plan:
        """The decisions for the whole model."""
        self._require_joinable()
        kernels = {node.layer.name: self._kernel(node) for node in self._nodes(Kind.LINEAR)}
        tensors: dict[int, Choice] = {}
        absorbed = set()
        for node in self._graph.nodes:
            for tensor in node.outputs:
                if self._is_quantized_here(node, tensor):
                    choice = self._choice(node, tensor)
                    replaced = self._replaced_activations(node, choice)
                    if replaced:
                        absorbed.update(replaced)
                        choice = dataclasses.replace(
                            choice, reason=f"{choice.reason}; its clip replaces {', '.join(replaced)}"
                        )
                    tensors[tensor] = choice
        between = self._between(tensors)
        return Plan(
            kernels={name: choice for name, choice in kernels.items() if choice.quantizer is not None},
            tensors=tensors,
            between=between,
            absorbed=frozenset(absorbed),
        )

    # Kernels -----------------------------------------------------------------------------------------------------

    def _kernel(self, node: _host.Node) -> Choice:
        name = node.layer.name
        if name in self._configs:
            return Choice(quantizer=self._configs[name].weights, reason="config given for this layer")
        if name not in self._edges:
            return Choice(quantizer=self._default.weights, reason="config of the scheme")
        return Choice(quantizer=self._edge_weights(), reason=self._edges[name])

    def _edge_weights(self) -> WeightQuantizer | None:
        return None if self._edge_bits is None else MaxAbsWeightQuantizer(bits=self._edge_bits)

    def _find_edges(self) -> dict[str, str]:
        """Layers with a kernel at a model input or output: their names, and which."""
        edges = {}
        for node in self._nodes(Kind.LINEAR):
            if any(self._kind(self._origin(tensor)) is Kind.INPUT for tensor in node.inputs):
                edges[node.layer.name] = "edge: reads a model input"
            elif any(self._ends_the_model(tensor) for tensor in node.outputs):
                edges[node.layer.name] = "edge: ends at a model output"
        return edges

    def _ends_the_model(self, tensor: int) -> bool:
        passing = (Kind.NORM, Kind.RELU, Kind.RELU6, Kind.LOOKUP, Kind.KEEP)
        return tensor in self._graph.outputs or any(
            self._kind(reader) in passing and any(self._ends_the_model(output) for output in reader.outputs)
            for reader in self._graph.readers(tensor)
        )

    # Tensors -----------------------------------------------------------------------------------------------------

    def _is_quantized_here(self, node: _host.Node, tensor: int) -> bool:
        kind = self._kind(node)
        if kind is Kind.KEEP:
            return False  # It is quantized already, where it was produced.
        if self._edge_bits is None and self._is_float_tail(node) and self._ends_the_model(tensor):
            return False
        if kind is Kind.INPUT and self._edge_bits is None:
            return any(self._kind(r) is not Kind.LINEAR or r.layer.name in self._configs for r in self._uses(tensor))
        if tensor in self._graph.outputs:
            return True
        readers = self._graph.readers(tensor)
        return not (len(readers) == 1 and self._is_fused(kind, readers[0]))

    def _is_float_tail(self, node: _host.Node) -> bool:
        """Whether a tensor comes from a float layer that ends the model, through what does not multiply."""
        if self._kind(node) is Kind.LINEAR:
            return node.layer.name in self._edges and node.layer.name not in self._configs
        passing = (Kind.NORM, Kind.RELU, Kind.RELU6, Kind.LOOKUP, Kind.KEEP)
        return self._kind(node) in passing and self._is_float_tail(self._graph.producer(node.inputs[0]))

    def _is_fused(self, kind: Kind | None, reader: _host.Node) -> bool:
        """Whether a reader works on the accumulator, before anything is rounded."""
        reading = self._kind(reader)
        if reading is Kind.NORM:
            return kind is Kind.LINEAR
        if reading in (Kind.RELU, Kind.RELU6):
            return kind in (Kind.LINEAR, Kind.NORM, Kind.SUM)
        if reading is Kind.CONCATENATE:
            return all(self._can_join(tensor, reader) for tensor in reader.inputs)
        return False

    def _can_join(self, tensor: int, concatenate: _host.Node) -> bool:
        """Whether a branch of a concatenation can be written on the grid of the whole."""
        kinds = {self._kind(self._graph.producer(branch)) for branch in concatenate.inputs}
        return (
            tensor not in self._graph.outputs
            and self._graph.readers(tensor) == (concatenate,)
            # ReLUs on all branches become the clip of the whole; on some of them they could not.
            and (kinds == {Kind.RELU} or kinds <= {Kind.LINEAR, Kind.NORM, Kind.SUM})
            and concatenate.layer.axis in (-1, len(concatenate.layer.output_shape) - 1)
        )

    def _require_joinable(self) -> None:
        """Raises one sentence for a concatenation whose branches cannot be written on one grid."""
        for node in self._nodes(Kind.CONCATENATE):
            if not all(self._can_join(tensor, node) for tensor in node.inputs):
                raise ValueError(
                    f"Got the Concatenate {node.layer.name!r} of tensors that need grids of their own, expected "
                    "branches along the last axis that nothing else reads and that come from layers with a kernel, "
                    "batch norms or Adds, all behind a ReLU or none: give it such branches."
                )

    def _replaced_activations(self, node: _host.Node, choice: Choice) -> list[str]:
        """The ReLU layers that the quantizer behind a node makes needless."""
        if self._kind(node) in (Kind.RELU, Kind.RELU6):
            return [node.layer.name]
        if self._kind(node) is not Kind.CONCATENATE or choice.quantizer.is_signed:
            return []
        branches = [self._graph.producer(tensor) for tensor in node.inputs]
        joined = all(self._can_join(tensor, node) for tensor in node.inputs)
        return [branch.layer.name for branch in branches if joined and self._kind(branch) is Kind.RELU]

    def _choice(self, node: _host.Node, tensor: int) -> Choice:
        kind = self._kind(node)
        if kind is Kind.LOOKUP:
            step, zero = LOOKUP_GRIDS[activation_name(node.layer)]
            reason = f"the output grid of {activation_name(node.layer)} is prescribed by the runtime"
            return Choice(quantizer=FixedActivationQuantizer(step=step, zero=zero), reason=reason)
        signed = not self._is_non_negative(tensor)
        wanted = [self._wanted(reader) for reader in self._uses(tensor)]
        if wanted and tensor in self._graph.outputs:
            wanted.append(None)  # The model's output is one more reader, and wants 8 bits.
        eight = RangeActivationQuantizer(bits=_EIGHT, signed=signed)
        if kind is Kind.INPUT or not wanted:
            return Choice(quantizer=dataclasses.replace(eight, bits=self._edge_bits or _EIGHT), reason="model edge")
        first = wanted[0]
        if first is None or any(want != first for want in wanted):
            return Choice(quantizer=eight, reason=self._why_eight(tensor))
        if isinstance(first, RangeActivationQuantizer):
            return Choice(quantizer=dataclasses.replace(first, signed=signed), reason="read by an edge layer only")
        if signed:
            return Choice(quantizer=eight, reason="signed values: 8 bits")
        if kind is Kind.RELU6 or not self._comes_from_accumulator(node):
            first = first.without_lower()  # Nothing to subtract it in, or the clip at 6 would move with it.
        return Choice(quantizer=first, reason="all readers ask for it")

    def _why_eight(self, tensor: int) -> str:
        readers = {
            f"{reader.layer.name} ({type(reader.layer).__name__})"
            for reader in self._uses(tensor)
            if self._wanted(reader) is None
        }
        if tensor in self._graph.outputs:
            readers.add("the model output")
        return f"8 bits for {', '.join(sorted(readers))}" if readers else "8 bits: its readers ask for different widths"

    def _between(self, tensors: Mapping[int, Choice]) -> dict[tuple[int, str], Choice]:
        between = {}
        for reader in self._nodes(Kind.LINEAR):
            wanted = self._wanted(reader)
            if wanted is None or isinstance(wanted, RangeActivationQuantizer):
                continue
            tensor = reader.inputs[0]
            source = self._source(tensor)
            if source not in tensors:
                continue
            placed = tensors[source].quantizer
            if wanted.bits < placed.bits and not placed.is_signed:
                reason = f"low-bit input of a tensor that has 8 bits ({tensors[source].reason})"
                between[tensor, reader.layer.name] = Choice(quantizer=wanted.after_rounding(), reason=reason)
        return between

    # What readers ask for ----------------------------------------------------------------------------------------

    def _wanted(self, reader: _host.Node) -> ActivationQuantizer | None:
        """The quantizer that a reader asks its input for; None if any 8-bit grid will do."""
        if self._kind(reader) is not Kind.LINEAR:
            return None
        name = reader.layer.name
        if name in self._configs:
            return self._configs[name].activations
        if name in self._edges:
            return None if self._edge_bits is None else RangeActivationQuantizer(bits=self._edge_bits)
        return self._default.activations

    def _uses(self, tensor: int) -> list[_host.Node]:
        """The readers of a tensor, those behind value-keeping layers included."""
        uses = []
        for reader in self._graph.readers(tensor):
            if self._kind(reader) is Kind.KEEP and not any(out in self._graph.outputs for out in reader.outputs):
                uses += [use for output in reader.outputs for use in self._uses(output)]
            else:
                uses.append(reader)
        return uses

    def _source(self, tensor: int) -> int:
        """The tensor behind value-keeping layers that a tensor has its values from."""
        producer = self._graph.producer(tensor)
        return self._source(producer.inputs[0]) if self._kind(producer) is Kind.KEEP else tensor

    def _origin(self, tensor: int) -> _host.Node:
        return self._graph.producer(self._source(tensor))

    def _is_non_negative(self, tensor: int) -> bool:
        node = self._graph.producer(tensor)
        kind = self._kind(node)
        if kind in (Kind.RELU, Kind.RELU6):
            return True
        if kind is Kind.LOOKUP:
            return activation_name(node.layer) != "tanh"
        if kind in (Kind.KEEP, Kind.CONCATENATE, Kind.SUM, Kind.MEAN, Kind.AVERAGE_POOL):
            return all(self._is_non_negative(tensor) for tensor in node.inputs)
        return False

    def _comes_from_accumulator(self, node: _host.Node) -> bool:
        """Whether an exporter can subtract the lower end in a bias."""
        while self._kind(node) in (Kind.RELU, Kind.RELU6, Kind.NORM):
            if self._kind(node) is Kind.NORM:
                return True
            node = self._graph.producer(node.inputs[0])
        return self._kind(node) is Kind.LINEAR

    def _kind(self, node: _host.Node) -> Kind | None:
        return self._kinds[node.layer.name]

    def _nodes(self, kind: Kind) -> list[_host.Node]:
        return [node for node in self._graph.nodes if self._kind(node) is kind]
