"""Networks of keras-cv. Its presets are downloads, so their arguments are written out here."""

from __future__ import annotations

import tensorflow_model_optimization  # noqa: F401 - first, so that keras_cv finds the Keras that TFMOT uses.
import tf_keras as keras

import keras_cv  # isort: skip

layers = keras.layers
models = keras_cv.models


def resnet(
    size: int, classes: int, *, blocks: tuple[int, ...], version: int = 1, rescales: bool = True, nested: bool = False
) -> keras.Model:
    """ResNet-18 (two basic blocks per stage) or -34 (3, 4, 6, 3), version 2 with pre-activation."""
    backbone = (models.ResNetBackbone if version == 1 else models.ResNetV2Backbone)(
        stackwise_filters=[64, 128, 256, 512],
        stackwise_blocks=list(blocks),
        stackwise_strides=[1, 2, 2, 2],
        include_rescaling=rescales,
        input_shape=(size, size, 3),
        block_type="basic_block",
        name=f"resnet{2 * sum(blocks) + 2}_v{version}",
    )
    return _classifier_around(backbone, classes) if nested else _classifier(backbone, classes)


def mobilenet_v3_small(size: int, classes: int) -> keras.Model:
    """Its squeeze-and-excite blocks are layers of keras-cv's own."""
    backbone = models.MobileNetV3Backbone(
        stackwise_expansion=[1, 72 / 16, 88 / 24, 4, 6, 6, 3, 3, 6, 6, 6],
        stackwise_filters=[16, 24, 24, 40, 40, 40, 48, 48, 96, 96, 96],
        stackwise_kernel_size=[3, 3, 3, 5, 5, 5, 5, 5, 5, 5, 5],
        stackwise_stride=[2, 2, 1, 2, 1, 1, 1, 1, 2, 1, 1],
        stackwise_se_ratio=[0.25, None, None, *[0.25] * 8],
        stackwise_activation=[*["relu"] * 3, *["hard_swish"] * 8],
        include_rescaling=True,
        input_shape=(size, size, 3),
        name="mobilenet_v3_small",
    )
    return _classifier(backbone, classes)


def efficientnet_lite_b0(size: int, classes: int) -> keras.Model:
    backbone = models.EfficientNetLiteBackbone(
        stackwise_kernel_sizes=[3, 3, 5, 3, 5, 5, 3],
        stackwise_num_repeats=[1, 2, 2, 3, 3, 4, 1],
        stackwise_input_filters=[32, 16, 24, 40, 80, 112, 192],
        stackwise_output_filters=[16, 24, 40, 80, 112, 192, 320],
        stackwise_expansion_ratios=[1, 6, 6, 6, 6, 6, 6],
        stackwise_strides=[1, 2, 2, 2, 1, 2, 1],
        width_coefficient=1.0,
        depth_coefficient=1.0,
        include_rescaling=True,
        input_shape=(size, size, 3),
        name="efficientnet_lite_b0",
    )
    return _classifier(backbone, classes)


def yolo_v8(size: int, classes: int) -> keras.Model:
    """The functional part of the extra small detector; the class around it adds losses, decoding and suppression."""
    backbone = models.YOLOV8Backbone(
        stackwise_channels=[32, 64, 128, 256],
        stackwise_depth=[1, 2, 2, 1],
        include_rescaling=True,
        input_shape=(size, size, 3),
    )
    detector = models.YOLOV8Detector(backbone, num_classes=classes, bounding_box_format="xywh", fpn_depth=1)
    return keras.Model(detector.input, [detector.output["boxes"], detector.output["classes"]], name="yolo_v8")


def _classifier(backbone: keras.Model, classes: int) -> keras.Model:
    """A backbone, the average over all positions and logits, without nesting."""
    x = layers.GlobalAveragePooling2D(name="average")(backbone.output)
    return keras.Model(backbone.input, layers.Dense(classes, name="logits")(x), name=backbone.name)


def _classifier_around(backbone: keras.Model, classes: int) -> keras.Model:
    """The same with the backbone as one layer, as keras_cv.models.ImageClassifier and transfer learning have it."""
    inputs = keras.Input(backbone.input_shape[1:])
    x = layers.GlobalAveragePooling2D(name="average")(backbone(inputs))
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x), name=f"{backbone.name}_nested")
