"""The graph of an expanded model, whose nodes are known by what they do to grids."""

from __future__ import annotations

from typing import Any

from tfqil import _host
from tfqil.scheme.kinds import FOLDED, Kind, activation_name, is_signed_by_itself, kind_of
from tfqil.scheme.plan import EDGE_REASONS


class TypedGraph:
    """The calls of a model and their kinds; tensors are named by numbers, as in `_host.Graph`."""

    def __init__(self, model: Any) -> None:
        self._graph = _host.graph_of(model)
        self._kinds = {node.layer.name: kind_of(node.layer) for node in self._graph.nodes}
        self._non_negative: dict[int, bool] = {}
        self.nodes = self._graph.nodes
        self.outputs = self._graph.outputs
        self.producer = self._graph.producer
        self.readers = self._graph.readers

    def kind(self, node: _host.Node) -> Kind | None:
        """The kind of a call's layer; None if its arithmetic is not known."""
        return self._kinds[node.layer.name]

    def nodes_of(self, kind: Kind) -> list[_host.Node]:
        """The calls of layers of a kind."""
        return [node for node in self.nodes if self.kind(node) is kind]

    def edges(self) -> dict[str, str]:
        """Layers with a kernel at a model input or output: their names, and which."""
        edges = {}
        for node in self.nodes_of(Kind.LINEAR):
            if any(self._starts_the_model(tensor) for tensor in node.inputs):
                edges[node.layer.name] = EDGE_REASONS[0]
            elif any(self._ends_the_model(tensor) for tensor in node.outputs):
                edges[node.layer.name] = EDGE_REASONS[1]
        return edges

    def _starts_the_model(self, tensor: int) -> bool:
        """Whether a tensor is an input of the model, perhaps behind constants and what keeps values."""
        producer = self.producer(tensor)
        if self.kind(producer) in (Kind.KEEP, *FOLDED):
            return self._starts_the_model(producer.inputs[0])
        return self.kind(producer) is Kind.INPUT

    def _ends_the_model(self, tensor: int) -> bool:
        passing = (*FOLDED, Kind.RELU, Kind.LOOKUP, Kind.FUNCTION, Kind.TIED, Kind.KEEP, Kind.CONCATENATE)
        return tensor in self.outputs or any(
            self.kind(reader) in passing and any(self._ends_the_model(output) for output in reader.outputs)
            for reader in self.readers(tensor)
        )

    def is_non_negative(self, tensor: int) -> bool:
        """Whether a tensor has no negative values, whatever the inputs are."""
        if tensor not in self._non_negative:
            self._non_negative[tensor] = self._find_non_negative(tensor)
        return self._non_negative[tensor]

    def _find_non_negative(self, tensor: int) -> bool:
        node = self.producer(tensor)
        kind = self.kind(node)
        if kind is Kind.RELU:
            return True
        if kind is Kind.LOOKUP:
            return activation_name(node.layer) != "tanh"
        if is_signed_by_itself(node.layer):
            return False
        passing = (Kind.KEEP, Kind.CONCATENATE, Kind.SUM, Kind.PRODUCT, Kind.MEAN, Kind.AVERAGE_POOL, Kind.TIED)
        return kind in passing and all(self.is_non_negative(tensor) for tensor in node.inputs)

    def comes_from_accumulator(self, node: _host.Node) -> bool:
        """Whether an exporter can subtract the lower end in a bias."""
        while self.kind(node) is Kind.RELU:
            node = self.producer(node.inputs[0])
        return self.kind(node) in (Kind.LINEAR, *FOLDED)
