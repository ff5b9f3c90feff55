"""ResNet-18 and ResNet-34 of keras-cv. Its presets are downloads, so their arguments are written out here."""

from __future__ import annotations

import tensorflow_model_optimization  # noqa: F401 - first, so that keras_cv finds the Keras that TFMOT uses.
import tf_keras as keras

import keras_cv  # isort: skip

layers = keras.layers


def resnet(
    size: int, classes: int, *, blocks: tuple[int, ...], version: int = 1, rescales: bool = True, nested: bool = False
) -> keras.Model:
    """Logits of ResNet-18 (two basic blocks per stage) or -34 (3, 4, 6, 3), version 2 with pre-activation."""
    models = keras_cv.models
    backbone = (models.ResNetBackbone if version == 1 else models.ResNetV2Backbone)(
        stackwise_filters=[64, 128, 256, 512],
        stackwise_blocks=list(blocks),
        stackwise_strides=[1, 2, 2, 2],
        include_rescaling=rescales,
        input_shape=(size, size, 3),
        block_type="basic_block",
        name=f"resnet{2 * sum(blocks) + 2}_v{version}",
    )
    return _nested_classifier(backbone, classes) if nested else classifier(backbone, classes)


def classifier(backbone: keras.Model, classes: int) -> keras.Model:
    """A backbone, the average over all positions and logits, without nesting."""
    x = layers.GlobalAveragePooling2D(name="average")(backbone.output)
    return keras.Model(backbone.input, layers.Dense(classes, name="logits")(x), name=backbone.name)


def _nested_classifier(backbone: keras.Model, classes: int) -> keras.Model:
    """The same with the backbone as one layer, as keras_cv.models.ImageClassifier and transfer learning have it."""
    inputs = keras.Input(backbone.input_shape[1:])
    x = layers.GlobalAveragePooling2D(name="average")(backbone(inputs))
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x), name=f"{backbone.name}_nested")
