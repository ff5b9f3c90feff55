"""What the placement rules decide about a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tfqil.quantizers import ActivationQuantizer

# The reasons of kernels that follow the scheme's config, have one of their own, or are at an edge.
BY_SCHEME = "config of the scheme"
BY_LAYER = "config given for this layer"
EDGE_REASONS = ("edge: reads a model input", "edge: ends at a model output")
# That of a tensor at a model input or output.
MODEL_EDGE = "model edge"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """A quantizer and the reason for it.

    Attributes:
        quantizer: the quantizer.
        reason: why it is there.
        tie: number of the group of tensors that share the quantizer; None where there is none.
        replaces: names of the ReLU layers whose clip the quantizer does.
        inputs: of a kernel, the quantizer that its layer asks its input for; None if any 8-bit grid will do.
    """

    quantizer: Any
    reason: str
    tie: int | None = None
    replaces: tuple[str, ...] = ()
    inputs: ActivationQuantizer | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Every decision about a model.

    Attributes:
        kernels: layer name -> choice of the weight quantizer.
        tensors: tensor number -> choice of the activation quantizer where the tensor is produced.
        between: (tensor number, reader's name) -> choice between the tensor and that reader.
        absorbed: names of the ReLU layers that a quantizer replaces.
        in_float: names of the layers that compute in float.
    """

    kernels: Mapping[str, Choice]
    tensors: Mapping[int, Choice]
    between: Mapping[tuple[int, str], Choice]
    absorbed: frozenset[str]
    in_float: frozenset[str]
