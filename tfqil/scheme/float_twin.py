"""The float model under a quantized one: its quantizers taken off, the clips that they do put back."""

from __future__ import annotations

from typing import Any

from tfqil import _host
from tfqil.scheme.flatten import LayerCopies
from tfqil.scheme.kinds import Kind, kind_of
from tfqil.scheme.layers import QuantizeActivation, QuantizedLayer


def float_twin(q_model: Any) -> Any:
    """A copy of a quantized model without its quantizers, as the scheme had it before it placed them.

    Layers that the scheme took apart stay so. The weights are those that training updates, not their quantized values.
    """
    stripper = _Stripper(_host.graph_of(q_model))
    twin = _host.replay(q_model, stripper.call)
    stripper.copies.copy_weights()
    return twin


class _Stripper:
    """Calls copies of the layers inside wrappers, and ReLU layers where quantizers replaced them."""

    def __init__(self, graph: _host.Graph) -> None:
        self._graph = graph
        self.copies = LayerCopies()
        self._relus: dict[str, Any] = {}

    def call(self, node: _host.Node, tensors: list[Any]) -> Any:
        """The outputs of a node without quantizers."""
        if not node.inputs:
            return tensors[0]
        if isinstance(node.layer, QuantizeActivation):
            return self._clipped(node, tensors[0])
        layer = node.layer.layer if isinstance(node.layer, QuantizedLayer) else node.layer
        if kind_of(layer) is Kind.CONCATENATE:
            tensors = self._clipped_branches(node, tensors)
        return _host.run_as_before(node, self.copies.of(layer), tensors)

    def _clipped(self, node: _host.Node, tensor: Any) -> Any:
        """A tensor behind the ReLU that a quantizer replaced, if it replaced one."""
        site = _host.keyword(node, "site", 0)
        low, high = node.layer.clips[site]
        return tensor if low is None else self._relu(node.layer.replaces[site][0], tensor, high)

    def _clipped_branches(self, concatenate: _host.Node, tensors: list[Any]) -> list[Any]:
        """The branches of a concatenation behind the ReLUs that the quantizer behind it replaced."""
        for reader in self._graph.readers(concatenate.outputs[0]):
            if isinstance(reader.layer, QuantizeActivation):
                site = _host.keyword(reader, "site", 0)
                names = reader.layer.replaces[site]
                if names and reader.layer.clips[site][0] is None:
                    return [self._relu(name, tensor) for name, tensor in zip(names, tensors, strict=True)]
        return tensors

    def _relu(self, name: str, tensor: Any, ceiling: float | None = None) -> Any:
        if name not in self._relus:
            self._relus[name] = _host.keras.layers.ReLU(ceiling, name=name)
        return self._relus[name](tensor)
