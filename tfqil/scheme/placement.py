"""The placement rules: which tensor of a model gets which quantizer, and why.

1. Layers with a kernel take the weight quantizer of their config, edges 8 bits (`edge_bits`).
2. A tensor is quantized once, where it is produced, behind its batch norm and activation function: with the
   activation quantizer that its readers ask for if they all ask for the same and it is non-negative, else with 8 bits.
3. Readers that ask for fewer bits than an 8-bit tensor has share one quantizer between the tensor and them.
4. Value-keeping layers pass the grid on; what reads them counts as reading their input.
5. Tensors that are joined, or of which one is computed on the grid of the other, share one 8-bit grid.
6. Layers whose arithmetic is not known stay in float; what integer layers read of theirs is quantized.
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
    SlopeQuantizer,
    WeightQuantizer,
)
from tfqil.scheme.config import LowBitQuantizeConfig
from tfqil.scheme.kinds import (
    ACCUMULATING,
    FOLDED,
    FUSED_CEILING,
    LOOKUP_GRIDS,
    Kind,
    activation_name,
    ceiling_of,
)
from tfqil.scheme.plan import BY_LAYER, BY_SCHEME, MODEL_EDGE, Choice, Plan
from tfqil.scheme.ties import Ties
from tfqil.scheme.typed_graph import TypedGraph

_EIGHT = 8


class Planner:
    """Applies the rules to the graph of an expanded model."""

    def __init__(
        self, model: Any, configs: Mapping[str, LowBitQuantizeConfig], default: LowBitQuantizeConfig, edge_bits: Any
    ) -> None:
        self._graph = TypedGraph(model)
        self._configs = configs
        self._default = default
        self._edge_bits = edge_bits
        self._edges = self._graph.edges()
        self._kernels = {node.layer.name: self._kernel(node) for node in self._graph.nodes_of(Kind.LINEAR)}
        self._float_tensors: set[int] = set()
        self._float_layers = self._find_float()
        self._ties = Ties()
        for node in self._graph.nodes:
            if self._is_tying(node):
                self._ties.tie([*map(self._source, self._tied_inputs(node)), *node.outputs])

    def plan(self) -> Plan:
        """The decisions for the whole model."""
        tensors: dict[int, Choice] = {}
        absorbed = set()
        for node in self._graph.nodes:
            for tensor in node.outputs:
                if self._is_quantized_here(node, tensor):
                    choice = self._choice(node, tensor)
                    replaced = self._replaced_activations(node, choice)
                    absorbed.update(replaced)
                    tensors[tensor] = dataclasses.replace(choice, replaces=tuple(replaced))
        between = self._between(tensors)
        return Plan(
            kernels={name: choice for name, choice in self._weights().items() if choice.quantizer is not None},
            tensors=tensors,
            between=between,
            absorbed=frozenset(absorbed),
            in_float=frozenset(self._float_layers),
        )

    # Kernels -----------------------------------------------------------------------------------------------------

    def _kernel(self, node: _host.Node) -> Choice:
        name, inputs = node.layer.name, self._wanted(node)
        if name in self._configs:
            return Choice(quantizer=self._configs[name].weights, reason=BY_LAYER, inputs=inputs)
        if name not in self._edges:
            return Choice(quantizer=self._default.weights, reason=BY_SCHEME, inputs=inputs)
        return Choice(quantizer=self._edge_weights(), reason=self._edges[name], inputs=inputs)

    def _weights(self) -> dict[str, Choice]:
        """The choices for kernels, and for the slopes of a PReLU."""
        choice = Choice(quantizer=SlopeQuantizer(), reason="slopes: 8 bits, which the runtime prescribes")
        tied = {node.layer.name: node.layer for node in self._graph.nodes_of(Kind.TIED)}
        names = [name for name, layer in tied.items() if _host.kernel_name(layer) and name not in self._float_layers]
        return {**self._kernels, **dict.fromkeys(names, choice)}

    def _edge_weights(self) -> WeightQuantizer | None:
        return None if self._edge_bits is None else MaxAbsWeightQuantizer(bits=self._edge_bits)

    def _find_float(self) -> set[str]:
        """The layers that compute in float; notes which tensors come from them.

        What follows a float edge stays in float up to the next kernel; what follows an unknown layer does not.
        """
        found = set()
        edge_tensors: set[int] = set()
        for node in self._graph.nodes:
            kind = self._graph.kind(node)
            if kind is Kind.INPUT:
                is_edge = self._edge_bits is None or not _host.is_floating(node)
            elif kind is Kind.LINEAR:
                is_edge = self._kernels[node.layer.name].quantizer is None
            else:
                # An embedding is no edge: it reads integers since it cannot read anything else.
                looks_up = kind is None and self._edge_bits is not None and _host.reads_integers(node.layer)
                follows = all(tensor in edge_tensors for tensor in node.inputs) and not looks_up
                is_edge = follows or not _host.is_floating(node)
            if is_edge:
                edge_tensors.update(node.outputs)
            if is_edge or kind is None:
                self._float_tensors.update(node.outputs)
                found.add(node.layer.name)
        return found

    # Tensors -----------------------------------------------------------------------------------------------------

    def _is_quantized_here(self, node: _host.Node, tensor: int) -> bool:
        kind, readers = self._graph.kind(node), self._graph.readers(tensor)
        if not _host.is_floating(node):
            return False
        if tensor in self._float_tensors or kind is Kind.INPUT:
            return any(reader.layer.name not in self._float_layers for reader in readers)
        if self._passes_on(node):
            return False  # It is quantized already, where it was produced.
        if tensor in self._graph.outputs:
            return True
        return not (len(readers) == 1 and self._is_fused(kind, readers[0]))

    def _passes_on(self, node: _host.Node) -> bool:
        """Whether the outputs of a node are on the grid of its inputs."""
        kind = self._graph.kind(node)
        return kind is Kind.KEEP or (kind is Kind.CONCATENATE and not self._is_joined(node))

    def _is_fused(self, kind: Kind | None, reader: _host.Node) -> bool:
        """Whether a reader works on the accumulator, before anything is rounded."""
        reading = self._graph.kind(reader)
        if reading in FOLDED:
            return kind in (Kind.LINEAR, *FOLDED)
        if reading is Kind.RELU:
            return kind in ACCUMULATING
        return reading is Kind.CONCATENATE and self._is_joined(reader)

    def _is_joined(self, concatenate: _host.Node) -> bool:
        """Whether the branches of a concatenation can be written on the grid that its readers ask for."""
        producers = [self._graph.producer(tensor) for tensor in concatenate.inputs]
        kinds = {self._graph.kind(producer) for producer in producers}
        rank = len(concatenate.layer.output_shape)
        return (
            concatenate.layer.axis in (-1, rank - 1)
            and all(
                tensor not in self._graph.outputs
                and tensor not in self._float_tensors
                and self._graph.readers(tensor) == (concatenate,)
                for tensor in concatenate.inputs
            )
            # ReLUs on all branches become the clip of the whole; on some of them they could not.
            and (kinds == {Kind.RELU} or kinds <= {Kind.LINEAR, *FOLDED})
            and all(
                self._graph.kind(producer) is not Kind.RELU
                or (ceiling_of(producer.layer) is None and self._is_behind_accumulator(producer))
                for producer in producers
            )
        )

    def _is_behind_accumulator(self, relu: _host.Node) -> bool:
        """Whether a ReLU is fused into what it reads."""
        (source,) = relu.inputs
        producer = self._graph.producer(source)
        return self._graph.readers(source) == (relu,) and self._graph.kind(producer) in (Kind.LINEAR, *FOLDED)

    # Shared grids ------------------------------------------------------------------------------------------------

    def _is_tying(self, node: _host.Node) -> bool:
        """Whether a node needs its inputs on one grid, which is that of its output."""
        if node.layer.name in self._float_layers:
            return False
        kind = self._graph.kind(node)
        return kind is Kind.TIED or (
            kind is Kind.CONCATENATE and not self._is_joined(node) and not self._joins_equal_grids(node)
        )

    def _joins_equal_grids(self, concatenate: _host.Node) -> bool:
        """Whether all branches are on the same prescribed grid."""
        grids = {self._fixed_quantizer(self._graph.producer(self._source(t))) for t in concatenate.inputs}
        return len(grids) == 1 and None not in grids

    def _tied_inputs(self, node: _host.Node) -> list[int]:
        """The inputs of a tying node that can be produced on the shared grid."""
        return [t for t in node.inputs if self._fixed_quantizer(self._graph.producer(self._source(t))) is None]

    def _fixed_quantizer(self, node: _host.Node) -> FixedActivationQuantizer | None:
        """The prescribed quantizer of what a node produces; None if its grid is free."""
        kind = self._graph.kind(node)
        if node.layer.name in self._float_layers:
            return None
        if kind is Kind.LOOKUP:
            step, zero = LOOKUP_GRIDS[activation_name(node.layer)]
            return FixedActivationQuantizer(step=step, zero=zero)
        if kind is Kind.RELU and ceiling_of(node.layer) not in (None, FUSED_CEILING):
            # The highest level is the upper end, so that the saturation of int8 is the clip.
            return FixedActivationQuantizer(step=float(ceiling_of(node.layer) or 0.0) / 255, zero=0)
        return None

    def _tie_choice(self, tensor: int) -> Choice | None:
        """The quantizer of the group that a tensor belongs to; None without a group."""
        tie = self._ties.group(tensor)
        if tie is None:
            return None
        members = self._ties.members(tie)
        signed = not all(self._graph.is_non_negative(member) for member in members)
        return Choice(
            quantizer=RangeActivationQuantizer(bits=_EIGHT, signed=signed),
            reason="one 8-bit grid for tensors that are joined, or computed from one another on one grid",
            tie=tie,
        )

    def _replaced_activations(self, node: _host.Node, choice: Choice) -> list[str]:
        """The ReLU layers that the quantizer behind a node makes needless."""
        if node.layer.name in self._float_layers:
            return []
        if self._graph.kind(node) is Kind.RELU:
            return [node.layer.name]
        if self._graph.kind(node) is not Kind.CONCATENATE or choice.quantizer.is_signed:
            return []
        branches = [self._graph.producer(tensor) for tensor in node.inputs]
        return [branch.layer.name for branch in branches if self._graph.kind(branch) is Kind.RELU]

    def _choice(self, node: _host.Node, tensor: int) -> Choice:
        kind = self._graph.kind(node)
        fixed = self._fixed_quantizer(node)
        if fixed is not None:
            what = activation_name(node.layer) if kind is Kind.LOOKUP else f"a clip at {ceiling_of(node.layer):g}"
            return Choice(quantizer=fixed, reason=f"the output grid of {what} is prescribed by the runtime")
        tied = self._tie_choice(tensor)
        if tied is not None:
            return tied
        signed = not self._graph.is_non_negative(tensor)
        wanted = [self._wanted(reader) for reader in self._uses(tensor)]
        if wanted and tensor in self._graph.outputs:
            wanted.append(None)  # The model's output is one more reader, and wants 8 bits.
        eight = RangeActivationQuantizer(bits=_EIGHT, signed=signed)
        if kind is Kind.INPUT or not wanted:
            return Choice(quantizer=dataclasses.replace(eight, bits=self._edge_bits or _EIGHT), reason=MODEL_EDGE)
        first = wanted[0]
        if first is None or any(want != first for want in wanted):
            return Choice(quantizer=eight, reason=self._why_eight(tensor))
        if isinstance(first, RangeActivationQuantizer):
            return Choice(quantizer=dataclasses.replace(first, signed=signed), reason="read by an edge layer only")
        if signed:
            return Choice(quantizer=eight, reason="signed values: 8 bits")
        clipped = kind is Kind.RELU and ceiling_of(node.layer) is not None
        if clipped or not self._graph.comes_from_accumulator(node):
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
        for reader in self._graph.nodes:
            if self._is_tying(reader):
                for tensor in set(reader.inputs) - set(self._tied_inputs(reader)):
                    choice = self._tie_choice(reader.outputs[0])
                    if choice is not None:
                        between[tensor, reader.layer.name] = choice
            if self._graph.kind(reader) is not Kind.LINEAR or reader.layer.name in self._float_layers:
                continue
            wanted, tensor = self._wanted(reader), reader.inputs[0]
            placed = self._placed_quantizer(tensor, tensors)
            if wanted is None or placed is None or isinstance(wanted, RangeActivationQuantizer):
                continue
            if wanted.bits < placed.quantizer.bits and not placed.quantizer.is_signed:
                reason = f"low-bit input of a tensor that has 8 bits ({placed.reason})"
                between[tensor, reader.layer.name] = Choice(quantizer=wanted.after_rounding(), reason=reason)
        return between

    def _placed_quantizer(self, tensor: int, tensors: Mapping[int, Choice]) -> Choice | None:
        """The quantizer whose grid a tensor is on."""
        producer = self._graph.producer(tensor)
        if tensor in tensors or not self._passes_on(producer):
            return tensors.get(tensor)
        return self._tie_choice(tensor) or self._placed_quantizer(producer.inputs[0], tensors)

    # What readers ask for ----------------------------------------------------------------------------------------

    def _wanted(self, reader: _host.Node) -> ActivationQuantizer | None:
        """The quantizer that a reader asks its input for; None if any 8-bit grid will do."""
        if self._graph.kind(reader) is not Kind.LINEAR:
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
            if self._graph.kind(reader) is Kind.KEEP and not any(out in self._graph.outputs for out in reader.outputs):
                uses += [use for output in reader.outputs for use in self._uses(output)]
            else:
                uses.append(reader)
        return uses

    def _source(self, tensor: int) -> int:
        """The tensor behind value-keeping layers that a tensor has its values from, as far as it is on a grid."""
        producer = self._graph.producer(tensor)
        keeps = self._graph.kind(producer) is Kind.KEEP and tensor not in self._float_tensors
        return self._source(producer.inputs[0]) if keeps else tensor
