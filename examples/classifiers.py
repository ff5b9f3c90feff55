"""The classifiers that the papers train, for images of any size: logits from images.

resnet18, resnet34    ImageNet: basic blocks with pre-activation, as QIL's re-implementations have them (keras-cv)
alexnet               ImageNet, with batch normalization
resnet20              CIFAR-10: three stages of three basic blocks (He et al., 2016, section 4.2)
vgg11                 CIFAR-10: eight convolutions with batch normalization, and one dense layer
mobilenet             small images: seven pairs of a depthwise and a pointwise convolution (Howard et al., 2017)
"""

from __future__ import annotations

import importlib
import os

# Before TensorFlow is imported: keras-cv then builds on tf_keras, as TFMOT does, and not on Keras 3.
os.environ["TF_USE_LEGACY_KERAS"] = "1"

import alexnet as alexnet_network
import tf_keras as keras

layers = keras.layers

NAMES = ("resnet18", "resnet34", "alexnet", "resnet20", "vgg11", "mobilenet")

_STAGE_BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
# Channels of the convolutions, and where the image is halved.
_VGG11 = (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool")
# Channels and stride of each pair: those of the paper without the five equal ones, for images of 32 pixels.
_MOBILENET = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1))


def build(name: str, shape: tuple[int, int, int], classes: int, *, width: float = 1.0) -> keras.Model:
    """A network with fresh weights.

    Args:
        name: one of `NAMES`.
        shape: height, width and channels of the images.
        classes: number of logits.
        width: share of the channels, for networks that train in minutes; not of resnet18 and resnet34.

    Raises:
        ValueError: an unknown name, or images that the network does not take.
    """
    if name in _STAGE_BLOCKS:
        if width != 1 or shape[0] != shape[1] or shape[2] != 3:
            raise ValueError(
                f"Got {name} for images of {' x '.join(map(str, shape))} and a width of {width}, expected square "
                "images of three channels and a width of 1: choose resnet20 for others."
            )
        resnets = importlib.import_module("imagenet_resnets")  # Not above: keras-cv takes seconds.
        return resnets.resnet(shape[0], classes, blocks=_STAGE_BLOCKS[name], version=2, rescales=False)
    if name == "alexnet":
        return alexnet_network.alexnet(shape[0], classes, width=width)
    if name == "resnet20":
        return _cifar_resnet(shape, classes, blocks=3, width=width)
    if name == "vgg11":
        return _vgg(shape, classes, width)
    if name == "mobilenet":
        return _mobilenet(shape, classes, width)
    raise ValueError(f"Got the network {name!r}, expected one of {', '.join(NAMES)}.")


def _cifar_resnet(shape: tuple[int, int, int], classes: int, blocks: int, width: float) -> keras.Model:
    inputs = keras.Input(shape, name="image")
    x = _norm_relu(_conv(inputs, round(16 * width), "stem"), "stem")
    for stage, channels in enumerate((16, 32, 64), start=1):
        for block in range(1, blocks + 1):
            stride = 2 if stage > 1 and block == 1 else 1
            x = _basic_block(x, round(channels * width), stride, f"stage{stage}_block{block}")
    return _classifier(inputs, x, classes, "resnet20")


def _basic_block(x, channels: int, stride: int, name: str):
    y = _norm_relu(_conv(x, channels, f"{name}_first", stride=stride), f"{name}_first")
    y = _conv(y, channels, f"{name}_second")
    y = layers.BatchNormalization(name=f"{name}_second_norm")(y)
    if x.shape[-1] != channels or stride > 1:
        x = _conv(x, channels, f"{name}_shortcut", stride=stride, size=1)
        x = layers.BatchNormalization(name=f"{name}_shortcut_norm")(x)
    return layers.ReLU(name=f"{name}_relu")(layers.Add(name=f"{name}_add")([x, y]))


def _vgg(shape: tuple[int, int, int], classes: int, width: float) -> keras.Model:
    x = inputs = keras.Input(shape, name="image")
    number = 0
    for channels in _VGG11:
        if channels == "pool":
            if min(x.shape[1:3]) > 1:
                x = layers.MaxPooling2D(2, name=f"pool{number}")(x)
            continue
        number += 1
        x = _norm_relu(_conv(x, round(int(channels) * width), f"conv{number}"), f"conv{number}")
    return _classifier(inputs, x, classes, "vgg11")


def _mobilenet(shape: tuple[int, int, int], classes: int, width: float) -> keras.Model:
    inputs = keras.Input(shape, name="image")
    x = _norm_relu(_conv(inputs, round(32 * width), "stem", stride=2), "stem")
    for number, (channels, stride) in enumerate(_MOBILENET, start=1):
        x = layers.DepthwiseConv2D(
            3,
            strides=stride,
            padding="same",
            use_bias=False,
            depthwise_initializer="he_normal",
            name=f"depthwise{number}",
        )(x)
        x = _norm_relu(x, f"depthwise{number}")
        x = _norm_relu(_conv(x, round(channels * width), f"pointwise{number}", size=1), f"pointwise{number}")
    return _classifier(inputs, x, classes, "mobilenet")


def _conv(x, channels: int, name: str, *, stride: int = 1, size: int = 3):
    # Weights decay in the optimizer, so that no layer needs a regularizer.
    return layers.Conv2D(
        channels, size, strides=stride, padding="same", use_bias=False, kernel_initializer="he_normal", name=name
    )(x)


def _norm_relu(x, name: str):
    return layers.ReLU(name=f"{name}_relu")(layers.BatchNormalization(name=f"{name}_norm")(x))


def _classifier(inputs, features, classes: int, name: str) -> keras.Model:
    x = layers.GlobalAveragePooling2D(name="average")(features)
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x), name=name)
