"""Keras 3 models, and a process that rebuilds them; Keras 3 is what `keras` means there.

Run as a script, it prints a JSON object: the name of each model -> what came out.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

# With Keras 3 as the argument, so that the tests can read the names without it.
Build = Callable[[Any], Any]
REBUILT: dict[str, Build] = {}
REFUSED: dict[str, Build] = {}
# These are saved and loaded too.
SAVED = ("layers_as_activations", "operations", "shared_and_nested")
APPLICATIONS = ("MobileNetV2", "ResNet50", "EfficientNetB0")


def rebuilt(build: Build) -> Build:
    """Notes a model that can be rebuilt."""
    REBUILT[build.__name__] = build
    return build


def refused(build: Build) -> Build:
    """Notes a model that cannot be rebuilt."""
    REFUSED[build.__name__] = build
    return build


def images(keras: Any, *shared: Any) -> Any:
    """Layers one after the other on small images."""
    return keras.Sequential([keras.Input((8, 10, 3), name="image"), *shared])


def series(keras: Any, *shared: Any) -> Any:
    """Layers one after the other on a short series."""
    return keras.Sequential([keras.Input((6, 4), name="series"), *shared])


@rebuilt
def convolutions(keras):
    layers = keras.layers
    return images(
        keras,
        layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name="first"),
        layers.DepthwiseConv2D(3, depth_multiplier=2, activation="relu"),
        layers.Conv2D(8, 3, groups=2, padding="same", activation=None, kernel_regularizer="l2"),
        layers.SeparableConv2D(6, 3, padding="same", activation="silu", pointwise_constraint="max_norm"),
        layers.Conv2DTranspose(5, 3, strides=2, padding="same", activation="gelu"),
        layers.Conv2DTranspose(4, 3, strides=2, output_padding=1),
        layers.Conv2D(4, 3, dilation_rate=2),
    )


@rebuilt
def convolutions_of_series(keras):
    layers = keras.layers
    return series(
        keras,
        layers.Conv1D(8, 3, padding="causal", dilation_rate=2),
        layers.DepthwiseConv1D(3, padding="same"),
        layers.SeparableConv1D(6, 2),
        layers.Conv1DTranspose(4, 3, strides=2),
        layers.MaxPooling1D(2), layers.AveragePooling1D(2, padding="same"), layers.UpSampling1D(3),
        layers.ZeroPadding1D((1, 2)), layers.Cropping1D(1), layers.SpatialDropout1D(0.2),
        layers.GlobalAveragePooling1D(keepdims=True), layers.GlobalMaxPooling1D(),
    )  # fmt: skip


@rebuilt
def convolutions_of_volumes(keras):
    layers = keras.layers
    return keras.Sequential([
        keras.Input((4, 5, 6, 2)), layers.Conv3D(4, 2, padding="same"), layers.Conv3DTranspose(3, 2, strides=2),
        layers.MaxPooling3D(2), layers.ZeroPadding3D(1), layers.Cropping3D(1), layers.AveragePooling3D(2),
        layers.UpSampling3D(2), layers.SpatialDropout3D(0.1), layers.GlobalAveragePooling3D(keepdims=True),
        layers.GlobalMaxPooling3D(),
    ])  # fmt: skip


@rebuilt
def normalizations(keras):
    layers = keras.layers
    adapted = layers.Normalization(name="adapted")
    adapted.adapt(np.random.default_rng(0).normal(2, 3, (50, 8, 10, 3)))
    return images(
        keras,
        layers.Rescaling([0.5, 0.25, 2.0], offset=-0.5),
        adapted,
        layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0]),
        layers.Normalization(axis=(1, 3), mean=0.5, variance=2.0, invert=True),
        layers.Conv2D(6, 1),
        layers.BatchNormalization(momentum=0.9, epsilon=2e-3, scale=False),
        layers.BatchNormalization(center=False, synchronized=False),
        layers.LayerNormalization(),
        layers.LayerNormalization(axis=(1, 2, 3), center=False),
        layers.GroupNormalization(3),
        layers.UnitNormalization(),
    )


@rebuilt
def activations(keras):
    layers = keras.layers
    names = (
        "elu", "exponential", "gelu", "hard_sigmoid", "hard_silu", "leaky_relu", "linear", "log_softmax", "mish",
        "relu", "relu6", "selu", "sigmoid", "silu", "softmax", "softplus", "softsign", "swish", "tanh",
    )  # fmt: skip
    inputs = keras.Input((8,))
    outputs = [layers.Activation(name, name=f"layer_{name}")(inputs) for name in names]
    outputs += [
        layers.Dense(3, activation=name, activity_regularizer="l2", name=f"dense_{name}")(inputs)
        for name in names
        if name.startswith("hard")
    ]
    slopes = [
        layers.LeakyReLU(negative_slope=0.1), layers.ELU(0.7), layers.ReLU(6.0), layers.ReLU(negative_slope=0.2),
        layers.ReLU(2.0, 0.1, 0.5), layers.PReLU(), layers.Softmax(), layers.Identity(),
        layers.ActivityRegularization(l2=0.01),
    ]  # fmt: skip
    return keras.Model(inputs, outputs + [layer(inputs) for layer in slopes])


@rebuilt
def layers_as_activations(keras):
    layers = keras.layers
    return images(
        keras,
        layers.Conv2D(4, 3, activation=layers.ReLU(6.0)),
        layers.Conv2D(4, 3, activation=layers.PReLU(shared_axes=[1, 2])),
        layers.Conv2D(4, 3, activation=layers.LeakyReLU(negative_slope=0.2)),
        layers.Flatten(),
        layers.Dense(4, activation=layers.Activation("tanh")),
    )


@rebuilt
def reshaping(keras):
    layers = keras.layers
    return images(
        keras,
        layers.ZeroPadding2D(((1, 0), (2, 1))), layers.Cropping2D(((0, 1), (1, 0))), layers.UpSampling2D(2),
        layers.UpSampling2D((1, 2), interpolation="bilinear"), layers.MaxPooling2D(3, 2, padding="same"),
        layers.AveragePooling2D(2, padding="same"), layers.Permute((2, 1, 3)), layers.Dropout(0.5),
        layers.SpatialDropout2D(0.5), layers.GaussianNoise(0.1), layers.GaussianDropout(0.1),
        layers.AlphaDropout(0.1, seed=3), layers.Reshape((-1, 3)), layers.Flatten(), layers.RepeatVector(2),
    )  # fmt: skip


@rebuilt
def resizing_and_augmentation(keras):
    layers = keras.layers
    return images(
        keras,
        layers.RandomFlip("horizontal", seed=1), layers.RandomRotation(0.1), layers.RandomTranslation(0.1, 0.2),
        layers.RandomZoom(0.1), layers.RandomContrast(0.2), layers.RandomBrightness(0.2),
        layers.Resizing(12, 7), layers.Resizing(9, 9, interpolation="nearest"), layers.CenterCrop(6, 5),
        layers.Conv2D(2, 3),
    )  # fmt: skip


@rebuilt
def pooled_images(keras):
    inputs = keras.Input((8, 10, 3))
    layers = keras.layers
    pooled = [layers.GlobalAveragePooling2D(), layers.GlobalMaxPooling2D(), layers.GlobalMaxPooling2D(keepdims=True)]
    return keras.Model(inputs, [layer(inputs) for layer in pooled])


@rebuilt
def channels_first(keras):
    layers = keras.layers
    inputs = keras.Input((3, 8, 10))
    x = layers.ZeroPadding2D(1, data_format="channels_first")(inputs)
    x = layers.BatchNormalization(axis=1)(layers.UpSampling2D(2, data_format="channels_first")(x))
    return keras.Model(inputs, layers.Flatten(data_format="channels_first")(x))


@rebuilt
def merging(keras):
    layers = keras.layers
    one, two = keras.Input((6, 4), name="one"), keras.Input((6, 4), name="two")
    kinds = (
        layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum, layers.Minimum,
        layers.Concatenate,
    )  # fmt: skip
    outputs = {kind.__name__.lower(): kind()([one, two]) for kind in kinds}
    outputs["dot"] = layers.Dot(axes=(2, 2), normalize=True)([one, two])
    return keras.Model([one, two], outputs)


@rebuilt
def words(keras):
    layers = keras.layers
    inputs = keras.Input((7,), dtype="int32")
    x = layers.Embedding(20, 8, mask_zero=True)(inputs)
    x = layers.Bidirectional(layers.LSTM(5, return_sequences=True, dropout=0.1, unroll=True), name="both")(x)
    x = layers.TimeDistributed(layers.Dense(6, activation="relu"))(x)
    x = layers.Bidirectional(
        layers.SimpleRNN(3),
        merge_mode="sum",
        backward_layer=layers.SimpleRNN(3, go_backwards=True, activation="relu"),
    )(x)
    return keras.Model(inputs, layers.Dense(2, activation="softmax")(x))


@rebuilt
def masked_convolution(keras):
    layers = keras.layers
    inputs = keras.Input((7,), dtype="int32")
    x = layers.Conv1D(4, 3)(layers.Embedding(20, 8, mask_zero=True)(inputs))
    return keras.Model(inputs, layers.GlobalAveragePooling1D()(x))


@rebuilt
def masked_series(keras):
    layers = keras.layers
    inputs, mask = keras.Input((6, 4)), keras.Input((6,), dtype="bool", name="mask")
    x = layers.SimpleRNN(5, return_sequences=True)(layers.Masking(0.0)(inputs))
    y = layers.GRU(3, unroll=True)(inputs, mask=mask)
    return keras.Model([inputs, mask], [layers.GlobalAveragePooling1D()(x), y])


@rebuilt
def states(keras):
    layers = keras.layers
    inputs, second = keras.Input((6, 4)), keras.Input((3, 4))
    x, h, c = layers.LSTM(5, return_sequences=True, return_state=True, name="encoder")(inputs)
    y = layers.LSTM(5, use_bias=False, zero_output_for_mask=True, name="decoder")(second, initial_state=[h, c])
    return keras.Model([inputs, second], [x, y])


@rebuilt
def cells(keras):
    layers = keras.layers
    return series(
        keras,
        layers.RNN(
            [layers.LSTMCell(4), layers.GRUCell(3, activation="relu", reset_after=False)], return_sequences=True
        ),
        layers.RNN(layers.SimpleRNNCell(3), return_sequences=True, go_backwards=True),
        layers.SimpleRNN(3, unroll=True, return_sequences=True),
    )


@rebuilt
def recurrent_convolutions(keras):
    layers = keras.layers
    inputs = keras.Input((3, 8, 8, 2))
    x = layers.ConvLSTM2D(4, 3, return_sequences=True, padding="same", strides=2)(inputs)
    y = layers.TimeDistributed(layers.Conv2D(3, 2, activation="relu"))(x)
    y = layers.TimeDistributed(layers.BatchNormalization())(y)
    z = layers.ConvLSTM1D(2, 2)(layers.Reshape((3, 8, 16))(inputs))
    volumes = layers.ConvLSTM3D(2, 2)(layers.Reshape((3, 4, 4, 4, 2))(inputs))
    return keras.Model(inputs, [y, z, volumes])


@rebuilt
def attention(keras):
    layers = keras.layers
    one, two = keras.Input((6, 8)), keras.Input((5, 8))
    x = layers.MultiHeadAttention(2, 4, dropout=0.1, name="heads")(one, two)
    x, scores = layers.MultiHeadAttention(3, 4, value_dim=5, output_shape=7, use_bias=False)(
        x, value=two, key=two, return_attention_scores=True
    )
    causal = layers.MultiHeadAttention(1, 3)(one, one, use_causal_mask=True)
    y = layers.Attention(use_scale=True)([one, two])
    z = layers.AdditiveAttention()([one, two])
    e = layers.EinsumDense("abc,cd->abd", output_shape=(None, 9), bias_axes="d", activation="relu")(one)
    return keras.Model([one, two], [x, scores, causal, y, z, e])


@rebuilt
def transformer(keras):
    layers = keras.layers
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(20, 8)(inputs)
    y = layers.MultiHeadAttention(2, 4)(x, x)
    x = layers.LayerNormalization(epsilon=1e-6)(x + y)
    y = layers.Dense(8)(layers.Dense(16, activation="gelu")(x))
    x = layers.LayerNormalization(epsilon=1e-6)(x + y)
    return keras.Model(inputs, layers.Dense(3)(x[:, 0]))


@rebuilt
def shared_and_nested(keras):
    layers = keras.layers
    inner_input = keras.Input((4,), name="inner_input")
    tower = keras.Model(inner_input, layers.Dense(3, activation="relu", name="dense")(inner_input), name="tower")
    head = keras.Sequential([layers.Dense(5, name="dense"), layers.BatchNormalization()], name="head")
    shared = layers.Dense(4, name="shared")
    one, two = keras.Input((4,), name="one"), keras.Input((4,), name="two")
    x = layers.Concatenate()([tower(shared(one)), tower(shared(shared(two)))])
    return keras.Model({"one": one, "two": two}, {"sum": head(x), "plain": tower(one)}, name="outer")


@rebuilt
def models_in_wrappers(keras):
    layers = keras.layers
    frame = keras.Sequential(
        [keras.Input((8, 8, 2)), layers.Conv2D(3, 3), layers.BatchNormalization(), layers.GlobalMaxPooling2D()]
    )
    inputs = keras.Input((4, 8, 8, 2))
    return keras.Model(inputs, layers.TimeDistributed(frame)(inputs))


@rebuilt
def several_inputs_of_a_nested_model(keras):
    layers = keras.layers
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    both = keras.Model([a, b], [layers.Dense(2)(a), layers.Add()([a, b])], name="both")
    one, two = keras.Input((3,)), keras.Input((3,))
    x, y = both([one, two])
    p, q = both([two, y])
    return keras.Model([one, two], [x, p, q])


@rebuilt
def used_elsewhere(keras):
    layers = keras.layers
    shared, inputs = layers.Dense(3, name="shared"), keras.Input((3,))
    keras.Model(inputs, shared(shared(inputs)))
    other = keras.Input((3,))
    return keras.Model(other, layers.Dense(2)(shared(other)))


@rebuilt
def integer_images(keras):
    inputs = keras.Input((8, 8, 3), dtype="uint8")
    x = keras.layers.Resizing(5, 6, interpolation="nearest")(keras.layers.RandomFlip()(inputs))
    return keras.Model(inputs, [keras.layers.Rescaling(1 / 255)(x), keras.layers.Rescaling(0.1)(inputs)])


@rebuilt
def from_the_middle(keras):
    model = images(keras, keras.layers.Conv2D(4, 3), keras.layers.ReLU(), keras.layers.Conv2D(2, 3))
    return keras.Model(model.layers[0].output, model.layers[-1].output)


@rebuilt
def operations(keras):
    ops = keras.ops
    one, two = keras.Input((4, 6), name="one"), keras.Input((4, 6), name="two")
    positive = ops.square(one) + 0.5
    outputs = [
        one + two, one - 1.5, 2.0 - one, one * np.float64(3.0), one * np.arange(6.0), two / 4, 1 / positive, -one,
        positive**2, abs(one), ops.maximum(one, two), ops.minimum(one, 0.25), ops.exp(one), ops.log(positive),
        ops.sqrt(positive), ops.rsqrt(positive), ops.tanh(one), ops.sigmoid(one), ops.relu(one), ops.relu6(one * 4),
        ops.silu(one), ops.gelu(one), ops.gelu(one, approximate=False), ops.leaky_relu(one, 0.1), ops.elu(one),
        ops.selu(one), ops.softplus(one), ops.softmax(one), ops.softmax(one, axis=1), ops.log_softmax(one),
        ops.hard_sigmoid(one), ops.hard_silu(one), ops.mean(one, axis=1), ops.sum(one, axis=(1, 2), keepdims=True),
        ops.max(one, axis=-1), ops.min(one, axis=1), ops.reshape(one, (-1, 24)), ops.transpose(one, (0, 2, 1)),
        ops.concatenate([one, two], axis=-1), ops.stack([one, two], axis=1), *ops.split(one, 3, axis=-1),
        ops.squeeze(ops.expand_dims(one, 1), 1), one[:, 0], one[:, 1:3, ::2], one[..., None], ops.clip(one, 0.0, 0.5),
        ops.pad(one, ((0, 0), (1, 2), (0, 1))), one @ ops.transpose(two, (0, 2, 1)), ops.cast(one, "int32"),
        ops.stop_gradient(one), keras.activations.relu(one, negative_slope=0.1), keras.activations.gelu(one),
        ops.cast(one, "int32") + 0.5,
    ]  # fmt: skip
    return keras.Model([one, two], outputs)


@rebuilt
def half_precision(keras):
    layers = keras.layers
    inputs = keras.Input((8, 8, 3))
    x = layers.BatchNormalization(dtype="mixed_float16")(layers.Conv2D(4, 3, dtype="mixed_float16")(inputs))
    x = layers.GlobalAveragePooling2D(dtype="float32")(layers.ReLU(dtype="mixed_float16")(x * 0.5))
    y = layers.Dense(3, dtype="mixed_bfloat16")(x)
    whole = [layers.Dense(2, dtype=dtype)(x) for dtype in ("float16", "bfloat16", "float32", "float64")]
    return keras.Model(inputs, [y, *whole])


@rebuilt
def frozen(keras):
    layers = keras.layers
    model = images(keras, layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU(), layers.Conv2D(2, 3))
    model.layers[0].trainable = model.layers[1].trainable = False
    return model


@rebuilt
def called_in_training(keras):
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.BatchNormalization()(inputs, training=True)
    return keras.Model(inputs, keras.layers.Dropout(0.5)(x, training=True))


@rebuilt
def odd_names(keras):
    return images(keras, keras.layers.Conv2D(2, 3, name="first conv (3x3)"), keras.layers.ReLU(name="é"))


@rebuilt
def own_initializers(keras):
    layers, initializers = keras.layers, keras.initializers

    def ones(shape, dtype=None):
        return np.ones(shape, dtype)

    return images(
        keras,
        layers.Conv2D(4, 3, kernel_initializer=ones, bias_initializer=initializers.Constant(0.3)),
        layers.Conv2D(
            4, 3, kernel_initializer=initializers.VarianceScaling(2.0, "fan_out", "truncated_normal", seed=3),
            kernel_regularizer=keras.regularizers.L1L2(0.1, 0.2), kernel_constraint=keras.constraints.MinMaxNorm(0.0),
        ),
    )  # fmt: skip


@refused
def many_at_once(keras):
    layers = keras.layers

    class Own(layers.Layer):
        def call(self, inputs):
            return inputs * 2.0

    class Net(keras.Model):
        def call(self, inputs):
            return inputs

    inputs = keras.Input((4,), name="start")
    inner = keras.Sequential([layers.Lambda(lambda x: x, output_shape=(4,), name="code")], name="inner")
    x = Own(name="own")(inner(Own(name="own_too")(inputs)))
    x = layers.RMSNormalization(name="rms")(Net(name="net")(x))
    x = layers.Dense(4, activation="celu", name="celu")(keras.ops.cumsum(x, axis=-1))
    x = layers.Dense(4, activation=lambda y: y, name="function")(x)
    x = layers.LayerNormalization(rms_scaling=True, name="scaled")(layers.Reshape((1, 4))(x))
    x = layers.LSTM(3, recurrent_activation="hard_sigmoid", name="recurrent")(x)
    return keras.Model(inputs, layers.Dense(2, name="fine")(x))


@refused
def lookups(keras):
    words_ = keras.Input((1,), dtype="string")
    return keras.Model(words_, keras.layers.StringLookup(vocabulary=["a", "b"], name="lookup")(words_))


@refused
def low_rank(keras):
    model = series(keras, keras.layers.Dense(8, name="adapted"))
    model.layers[0].enable_lora(2)
    return model


@refused
def quantized(keras):
    model = series(keras, keras.layers.Dense(8, name="quantized"))
    model.quantize("int8")
    return model


@refused
def inside_wrappers(keras):
    layers = keras.layers
    frame = keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: x, name="code")], name="frame")
    return series(
        keras,
        layers.TimeDistributed(frame, name="frames"),
        layers.TimeDistributed(layers.Dense(2, activation="hard_silu", name="hard"), name="time"),
    )


@refused
def integers_resized(keras):
    inputs = keras.Input((8, 8, 3), dtype="uint8")
    return keras.Model(inputs, keras.layers.Resizing(4, 4, name="resized")(inputs))


@refused
def averaged_integers(keras):
    inputs = keras.Input((8,), dtype="int32")
    return keras.Model(inputs, keras.ops.mean(inputs, axis=1))


@refused
def unbuilt(keras):
    return keras.Sequential([keras.layers.Dense(2)], name="lazy")


@refused
def subclassed(keras):
    class Net(keras.Model):
        def call(self, inputs):
            return inputs

    return Net(name="net")


@refused
def functional_with_a_call_of_its_own(keras):
    class Net(keras.Model):
        def call(self, inputs):
            return super().call(inputs) * 2.0

    inputs = keras.Input((3,))
    return Net(inputs=inputs, outputs=keras.layers.Dense(2)(inputs), name="net")


@refused
def of_tf_keras(keras):
    import tf_keras

    return tf_keras.Sequential([tf_keras.Input((3,)), tf_keras.layers.Dense(2)], name="fine")


@refused
def no_model(keras):
    return 4


def randomized(model: Any) -> Any:
    """A Keras 3 model with other values in everything that starts from a constant; what is a variance is positive."""
    random = np.random.default_rng(0)
    for variable in model.weights:
        values = np.array(variable)
        if not variable.dtype.startswith("int") and (values.ndim < 2 or not np.ptp(values)):
            values = values + random.normal(0, 0.2, variable.shape)
            variable.assign(np.abs(values) + 0.1 if "variance" in variable.name else values)
    for layer in model._flatten_layers():
        if type(layer).__name__ == "Normalization":
            layer.finalize_state()
    return model


def inputs_of(model: Any, batch: int = 3) -> list[np.ndarray]:
    """Random arrays for the inputs of a model; the last time steps of words are zeros."""
    random = np.random.default_rng(1)
    arrays = []
    for tensor in model.inputs:
        shape = (batch, *tensor.shape[1:])
        if tensor.dtype == "bool":
            arrays.append(random.random(shape) < 0.7)
        elif tensor.dtype == "uint8":
            arrays.append(random.integers(0, 256, shape).astype("uint8"))
        elif tensor.dtype.startswith("int"):
            arrays.append(random.integers(1, 20, shape).astype(tensor.dtype))
            arrays[-1][:, -2:] = 0
        else:
            arrays.append(random.normal(0, 1, shape).astype(tensor.dtype))
            if len(shape) == 3:
                arrays[-1][0, -2:] = 0.0
    return arrays


def arguments_of(model: Any) -> Any:
    """Random inputs as a model takes them: one array, a list, or a dictionary."""
    arrays = inputs_of(model)
    if isinstance(getattr(model, "_inputs_struct", None), dict):
        return {tensor.name: array for tensor, array in zip(model.inputs, arrays, strict=True)}
    return arrays if len(arrays) > 1 else arrays[0]


def comparison(keras: Any, model: Any, model_name: str) -> dict[str, Any]:
    """What differs between a Keras 3 model and what it is rebuilt as."""
    import tensorflow as tf

    import tfqil
    from tfqil.scheme.keras3 import from_keras3

    randomized(model)
    before = [np.array(value) for value in model.get_weights()]
    twin = from_keras3(model)
    kept = all(np.array_equal(old, new) for old, new in zip(before, model.get_weights(), strict=True))
    given = arguments_of(model)
    expected, got = keras.tree.flatten(model(given, training=False)), tf.nest.flatten(twin(given, training=False))
    if model_name in SAVED:
        with tempfile.TemporaryDirectory() as folder:
            twin.save(f"{folder}/model.keras")
            loaded = tf.nest.flatten(tfqil.load_model(f"{folder}/model.keras")(given, training=False))
    else:
        loaded = got
    reach = [float(np.ptp(np.float64(each))) for each in expected]
    differences = [
        float(np.max(np.abs(np.float64(a) - np.float64(b))) / max(1.0, float(np.max(np.abs(np.float64(a))))))
        for a, b in zip(expected, got, strict=True)
    ]
    if model.losses:  # Keras before 3.15 does not divide the losses of activities by the size of the batch.
        for each in (model, twin):
            each(tf.nest.map_structure(lambda array: array[:1], given), training=False)
    return {
        "module": type(twin).__module__.partition(".")[0],
        "differences": differences,
        "reach": reach,
        "loaded": all(bool(tf.reduce_all(a == b)) for a, b in zip(got, loaded, strict=True)),
        "dtypes": [[str(a.dtype.name), str(b.dtype.name)] for a, b in zip(expected, got, strict=True)],
        "shapes": [[list(a.shape), list(b.shape)] for a, b in zip(expected, got, strict=True)],
        "trainable": [len(model.trainable_weights), len(twin.trainable_weights)],
        "weights": [len(model.get_weights()), len(twin.get_weights())],
        "losses": [float(sum(map(float, model.losses))), float(sum(map(float, twin.losses)))],
        "names": [[layer.name for layer in each.layers if layer.weights] for each in (model, twin)],
        "model_names": [model.name, twin.name],
        "kept": kept,
        "layers": [type(layer).__name__ for layer in model._flatten_layers()],
    }


def refusal(model: Any) -> dict[str, str]:
    """What `from_keras3` says to a model that it refuses."""
    from tfqil.scheme.keras3 import from_keras3

    try:
        from_keras3(model)
    except (TypeError, ValueError) as error:
        return {"kind": type(error).__name__, "sentence": str(error)}
    return {}


def application(keras: Any, name: str) -> dict[str, Any]:
    """What differs for a network of keras.applications, and how many of its kernels get quantized."""
    import tfqil
    from tfqil.scheme.keras3 import from_keras3

    options = {"alpha": 0.35} if name == "MobileNetV2" else {}
    build = getattr(keras.applications, name)
    # Without the softmax, which would hide what differs.
    model = build(weights=None, input_shape=(32, 32, 3), classes=10, classifier_activation=None, **options)
    compared = comparison(keras, model, name)
    q_model = tfqil.quantize_model(from_keras3(model), tfqil.QILQuantizeConfig(4, 8))
    compared["kernels"] = [row.bits for row in tfqil.placements(q_model).rows if row.role == "kernel"]
    compared["finite"] = bool(np.isfinite(q_model(np.float32(inputs_of(model)[0]))).all())
    return compared


def main() -> None:
    """Imports Keras 3 first, as its users do, and prints what became of the models that the arguments name."""
    import keras

    outcomes: dict[str, Any] = {}
    for name in sys.argv[1:] or [*REBUILT, *REFUSED]:
        keras.utils.set_random_seed(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if name in APPLICATIONS:
                outcomes[name] = application(keras, name)
            elif name in REBUILT:
                outcomes[name] = comparison(keras, REBUILT[name](keras), name)
            else:
                outcomes[name] = refusal(REFUSED[name](keras))
    print(json.dumps({"version": keras.__version__, **outcomes}))


if __name__ == "__main__":
    main()
