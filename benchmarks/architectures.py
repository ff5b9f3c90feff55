"""The architectures that users bring, as models with natural weights (`random_weights.py`); nothing is downloaded.

All of them but the detector end in the logits of 100 classes, which show more differences than probabilities do.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

# Before TensorFlow is imported: keras-cv then builds on tf_keras, as TFMOT does, and not on Keras 3.
os.environ["TF_USE_LEGACY_KERAS"] = "1"

import networks
import numpy as np
import random_weights
import tf_keras as keras

sys.path.append(str(pathlib.Path(__file__).parents[1] / "examples"))
import alexnet

_CLASSES = 100
# The detector's classes, as in Pascal VOC.
_OBJECTS = 20
# Images whose statistics the normalizations take.
_STATISTICS_IMAGES = 32
_STATISTICS_SEED = 1000

Builder = Callable[[int], keras.Model]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """How to build a network, and what it reads."""

    # Takes height and width of the images.
    build: Builder
    # Height and width where the caller does not care: small, but every layer has something to do.
    size: int = 64
    # Whether the network takes pixels from 0 to 255 and scales them itself; else they lie in [-1, 1].
    rescales: bool = False
    # Whether users bring it; the others are for comparisons and for tests in a hurry.
    in_matrix: bool = True


def build(name: str, size: int | None = None, seed: int = 0) -> keras.Model:
    """An architecture with natural weights.

    Raises:
        ValueError: an unknown name.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"Got the architecture {name!r}, expected one of {', '.join(ARCHITECTURES)}.")
    model = ARCHITECTURES[name].build(size or ARCHITECTURES[name].size)
    data = images(name, model, _STATISTICS_IMAGES, seed=_STATISTICS_SEED)
    return random_weights.with_natural_weights(model, data, seed)


def images(name: str, model: keras.Model, count: int, seed: int) -> np.ndarray:
    """Images with the statistics of natural ones, in the range that the architecture reads."""
    data = networks.smooth_images(count, model.input_shape[1:], seed)
    return (data + 1) * 127.5 if ARCHITECTURES[name].rescales else data


def _application(builder: Callable[..., keras.Model]) -> Builder:
    return lambda size: builder(weights=None, input_shape=(size, size, 3), classes=_CLASSES, classifier_activation=None)


def _keras_cv(name: str, classes: int = _CLASSES, *, module: str = "keras_cv_networks", **arguments: Any) -> Builder:
    """A builder that uses keras-cv, which takes seconds to import: when it is needed."""
    return lambda size: getattr(importlib.import_module(module), name)(size, classes, **arguments)


_resnet18 = functools.partial(_keras_cv, "resnet", module="imagenet_resnets", blocks=(2, 2, 2, 2))
_resnet34 = functools.partial(_keras_cv, "resnet", module="imagenet_resnets", blocks=(3, 4, 6, 3))

ARCHITECTURES: dict[str, Architecture] = {
    "alexnet": Architecture(build=lambda size: alexnet.alexnet(size, _CLASSES, batch_norm=False), size=67),
    "alexnet_bn": Architecture(build=lambda size: alexnet.alexnet(size, _CLASSES), size=67),
    "alexnet_narrow": Architecture(
        build=lambda size: alexnet.alexnet(size, _CLASSES, width=1 / 16), size=67, in_matrix=False
    ),
    "vgg16": Architecture(build=_application(keras.applications.VGG16), size=32),
    "resnet18": Architecture(build=_resnet18(), rescales=True),
    "resnet18_nested": Architecture(build=_resnet18(nested=True), rescales=True),
    # TFMOT refuses the Rescaling layer: this one is for comparisons.
    "resnet18_unscaled": Architecture(build=_resnet18(rescales=False), in_matrix=False),
    "resnet18_v2": Architecture(build=_resnet18(version=2), rescales=True),
    "resnet34": Architecture(build=_resnet34(), rescales=True),
    "resnet34_v2": Architecture(build=_resnet34(version=2), rescales=True),
    "resnet50": Architecture(build=_application(keras.applications.ResNet50)),
    "resnet50_v2": Architecture(build=_application(keras.applications.ResNet50V2)),
    "mobilenet": Architecture(build=_application(keras.applications.MobileNet)),
    "mobilenet_v2": Architecture(build=_application(keras.applications.MobileNetV2)),
    "mobilenet_v3_small": Architecture(build=_application(keras.applications.MobileNetV3Small), rescales=True),
    "mobilenet_v3_small_cv": Architecture(build=_keras_cv("mobilenet_v3_small"), rescales=True),
    "efficientnet_b0": Architecture(build=_application(keras.applications.EfficientNetB0), rescales=True),
    "efficientnet_lite_b0": Architecture(build=_keras_cv("efficientnet_lite_b0"), rescales=True),
    "densenet121": Architecture(build=_application(keras.applications.DenseNet121)),
    "inception_v3": Architecture(build=_application(keras.applications.InceptionV3), size=75),
    "xception": Architecture(build=_application(keras.applications.Xception), size=71),
    "nasnet_mobile": Architecture(build=_application(keras.applications.NASNetMobile)),
    "yolo_v8": Architecture(build=_keras_cv("yolo_v8", _OBJECTS), rescales=True),
}
