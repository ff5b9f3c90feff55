"""Rebuilding a model with the quantizers of a plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfqil import _host
from tfqil.scheme.config import LowBitQuantizeConfig
from tfqil.scheme.kinds import Kind, ceiling_of, kind_of
from tfqil.scheme.layers import QuantizeActivation, QuantizedLayer
from tfqil.scheme.names import Names
from tfqil.scheme.plan import Choice, Plan

# Inference has to see what these operators read, since their result does not tell.
_READ_BY_OPERANDS = (Kind.SUM, Kind.PRODUCT, Kind.MEAN, Kind.TIED)
# What the name of the quantizer behind a layer begins with.
QUANTIZER_PREFIX = "quantize_"


def place(model: Any, plan: Plan) -> Any:
    """Rebuilds a model, which is used up, with the quantizers of a plan, and fits those of weights."""
    placer = _Placer(plan, Names(layer.name for layer in model.layers))
    placed = _host.replay(model, placer.call)
    placer.initialize()
    return placed


class _Placer:
    """Calls the layers of a model with the quantizers of a plan around them."""

    def __init__(self, plan: Plan, names: Names) -> None:
        self._plan = plan
        self._wrappers: dict[str, QuantizedLayer] = {}
        self._between: dict[tuple[int, Any], Any] = {}
        self._names = names
        # What computed a tensor from which operands, by the tensor's id.
        self._operands: dict[int, list[Any]] = {}
        self._tied: dict[int, _TiedSites] = {
            tie: _TiedSites(choice, count, names) for tie, (choice, count) in _tie_sizes(plan).items()
        }

    def call(self, node: _host.Node, tensors: list[Any]) -> Any:
        """The outputs of a node, quantized where the plan says so."""
        layer = node.layer
        inputs = self._quantized_inputs(node, tensors) if node.inputs else tensors
        choice = self._plan.kernels.get(layer.name)
        if choice is not None:
            if layer.name not in self._wrappers:
                config = LowBitQuantizeConfig(weights=choice.quantizer, activations=choice.inputs)
                self._wrappers[layer.name] = QuantizedLayer(layer, config, reason=choice.reason)
            layer = self._wrappers[layer.name]
        is_passed = layer.name in self._plan.absorbed or not node.inputs
        outputs = _host.as_list(inputs[0] if is_passed else _host.run_as_before(node, layer, inputs))
        if kind_of(layer) in _READ_BY_OPERANDS:
            self._operands[id(outputs[0])] = inputs
        is_relu = kind_of(node.layer) is Kind.RELU
        clip = (0.0, ceiling_of(node.layer)) if is_relu and is_passed else (None, None)
        for position, number in enumerate(node.outputs):
            produced = self._plan.tensors.get(number)
            if produced is not None:
                outputs[position] = self._quantized(
                    produced, f"{QUANTIZER_PREFIX}{node.layer.name}", outputs[position], clip
                )
        return outputs

    def initialize(self) -> None:
        """Fits the weight quantizers to the kernels."""
        for wrapper in self._wrappers.values():
            wrapper.initialize()

    def _quantized_inputs(self, node: _host.Node, tensors: list[Any]) -> list[Any]:
        """The inputs of a node, with a quantizer between where the plan has one; readers that ask alike share it."""
        result = []
        for number, tensor in zip(node.inputs, tensors, strict=True):
            choice = self._plan.between.get((number, node.layer.name))
            if choice is not None:
                key = (number, choice)
                if key not in self._between:
                    name = f"quantize_input_of_{node.layer.name}"
                    self._between[key] = self._quantized(choice, name, tensor, (None, None))
                tensor = self._between[key]
            result.append(tensor)
        return result

    def _quantized(self, choice: Choice, name: str, tensor: Any, clip: tuple[float | None, float | None]) -> Any:
        operands = self._operands.get(id(tensor))
        keywords = {} if operands is None else {"operands": operands}
        if choice.tie is not None:
            return self._tied[choice.tie].quantized(name, tensor, clip, choice.replaces, keywords)
        name = self._names.fresh(name)
        quantizer = choice.quantizer if clip[1] is None else choice.quantizer.within(clip[1])
        layer = QuantizeActivation(
            quantizer, reason=choice.reason, clips=(clip,), replaces=(choice.replaces,), name=name
        )
        return layer(tensor, **keywords)


class _TiedSites:
    """The one quantizing layer of tensors that share a grid, called once for each of them."""

    def __init__(self, choice: Choice, count: int, names: Names) -> None:
        self._choice, self._count, self._names = choice, count, names
        self._clips: list[tuple[float | None, float | None]] = []
        self._replaced: list[tuple[str, ...]] = []
        self._layer: QuantizeActivation | None = None

    def quantized(
        self,
        name: str,
        tensor: Any,
        clip: tuple[float | None, float | None],
        replaces: tuple[str, ...],
        keywords: Mapping[str, Any],
    ) -> Any:
        """The tensor on the shared grid."""
        if self._layer is None:
            self._layer = QuantizeActivation(
                self._choice.quantizer,
                reason=self._choice.reason,
                clips=((None, None),) * self._count,
                name=self._names.fresh(name),
            )
        site = len(self._clips)
        self._clips.append(clip)
        self._replaced.append(replaces)
        self._layer.clips = (*self._clips, *self._layer.clips[len(self._clips) :])
        self._layer.replaces = tuple(self._replaced)
        keywords = {**keywords, **({"site": site} if self._count > 1 else {})}
        return self._layer(tensor, **keywords)


def _tie_sizes(plan: Plan) -> dict[int, tuple[Choice, int]]:
    """The quantizer of each group of tensors that share a grid, and how many are quantized."""
    sizes: dict[int, tuple[Choice, int]] = {}
    distinct = {(tensor, choice) for (tensor, _), choice in plan.between.items()}
    for choice in (*plan.tensors.values(), *(choice for _, choice in distinct)):
        if choice.tie is not None:
            sizes[choice.tie] = choice, sizes.get(choice.tie, (choice, 0))[1] + 1
    return sizes
