"""More networks of keras-cv. Its presets are downloads, so their arguments are written out here."""

from __future__ import annotations

import tensorflow_model_optimization  # noqa: F401 - first, so that keras_cv finds the Keras that TFMOT uses.
import tf_keras as keras

import keras_cv  # isort: skip
from imagenet_resnets import classifier

models = keras_cv.models


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
    return classifier(backbone, classes)


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
    return classifier(backbone, classes)


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
