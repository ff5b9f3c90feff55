"""YOLOV8 of keras-cv as a plain model that can be quantized and converted, and its training and decoding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras_cv
import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfqil.export import runtime

_LEVELS = (1, 2, 3)
# Channels and blocks of the stages; small networks that train in minutes have a share of the channels.
_CHANNELS, _DEPTH = (64, 128, 256, 512), (1, 1, 1, 1)


class Detector:
    """What does not depend on the weights: the shape of the network, its loss, and how its outputs become boxes.

    Args:
        size: height and width of the images.
        classes: number of classes.
        width: share of the channels of the backbone, which has 64 to 512 without.
    """

    def __init__(self, size: int, classes: int, width: float = 1.0):
        backbone = keras_cv.models.YOLOV8Backbone(
            stackwise_channels=[round(channels * width) for channels in _CHANNELS],
            stackwise_depth=list(_DEPTH),
            include_rescaling=True,
            input_shape=(size, size, 3),
        )
        decoder = keras_cv.layers.MultiClassNonMaxSuppression(
            "xyxy", from_logits=False, confidence_threshold=0.05, iou_threshold=0.5, max_detections=100
        )
        self._yolo = keras_cv.models.YOLOV8Detector(
            backbone, classes, bounding_box_format="xyxy", fpn_depth=1, prediction_decoder=decoder
        )
        self._yolo.compile("ciou", "binary_crossentropy", optimizer="sgd")  # For the losses alone.
        self._shape = (size, size, 3)

    def network(self) -> keras.Model:
        """The float network with the weights that keras-cv gives it: images -> `boxes` and `classes`.

        keras-cv joins boxes and classes in one tensor and parts them again. In integers that tensor would have one
        grid, for logits that go up to ten and for probabilities, so that here the two are joined each with its like.
        """
        outputs = {}
        for kind, last in (("boxes", "box_3_conv"), ("classes", "classifier")):
            levels = [self._yolo.get_layer(f"yolo_v8_head_{level}_{last}").output for level in _LEVELS]
            flat = [
                keras.layers.Reshape((-1, tensor.shape[-1]), name=f"{kind}_{level}")(tensor)
                for level, tensor in zip(_LEVELS, levels, strict=True)
            ]
            outputs[kind] = keras.layers.Concatenate(axis=1, name=kind)(flat)
        return keras.Model(self._yolo.inputs, outputs, name="yolo_v8")

    def loss(self, images: tf.Tensor, labels: dict[str, tf.Tensor], outputs: dict[str, tf.Tensor]) -> tf.Tensor:
        """What keras-cv trains with: complete IoU for boxes, binary cross-entropy for classes."""
        return self._yolo.compute_loss(images, labels, outputs)

    def decode(self, outputs: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        """Boxes (left, top, right, bottom), classes and scores of each image of a batch."""
        tensors = {name: tf.constant(array) for name, array in outputs.items()}
        decoded = self._yolo.decode_predictions(tensors, tf.zeros((len(tensors["boxes"]), *self._shape)))
        boxes, classes, scores = (np.asarray(decoded[name]) for name in ("boxes", "classes", "confidence"))
        return [
            {"boxes": boxes[image][there], "classes": classes[image][there], "scores": scores[image][there]}
            for image, there in enumerate(classes >= 0)
        ]


class Trainer(keras.Model):
    """Trains a network, float or quantized, with the loss of a detector."""

    def __init__(self, network: keras.Model, detector: Detector):
        super().__init__()
        self.network = network
        self._detector = detector
        self._mean_loss = keras.metrics.Mean("loss")

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Reset at the start of each epoch."""
        return [self._mean_loss]

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> dict[str, tf.Tensor]:
        return self.network(inputs, training=training)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        images, labels = data
        with tf.GradientTape() as tape:
            loss = self._detector.loss(images, labels, self(images, training=True))
            loss += tf.add_n([*self.network.losses, tf.zeros(())])
        self.optimizer.minimize(loss, self.network.trainable_variables, tape=tape)
        self._mean_loss.update_state(loss)
        return {"loss": self._mean_loss.result()}


def run_network(network: keras.Model, images: np.ndarray) -> dict[str, np.ndarray]:
    """`boxes` and `classes` of a Keras model for a batch."""
    return dict(network.predict_on_batch(images))


def float_file(network: keras.Model) -> bytes:
    """The file of a float network, from a function: `from_keras_model` traces YOLOV8 several times, and slowly."""
    module = tf.Module()
    module.network_variables = network.variables
    images = tf.TensorSpec((None, *network.input_shape[1:]))
    function = tf.function(lambda images: network(images, training=False)).get_concrete_function(images)
    return tf.lite.TFLiteConverter.from_concrete_functions([function], module).convert()


def run_file(tflite: bytes, images: np.ndarray) -> dict[str, np.ndarray]:
    """`boxes` and `classes` of a file, whose outputs are in the order of their names, for a batch."""
    return dict(zip(("boxes", "classes"), runtime.run(tflite, [images]), strict=True))
