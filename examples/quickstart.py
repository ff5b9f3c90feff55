"""From a float Keras model to 8-, 4-, 3- and 2-bit integer files, on handwritten digits.

    python examples/quickstart.py

Trains a small residual network in float, then quantizes it with TFMOT's 8 bits and with QIL at 8/8, 4/4, 3/3 and 2/2
bits (weights/activations), each starting from the one before. Converts and verifies each, and prints one table. Writes
the files and a figure of the learned intervals to --output.
"""

from __future__ import annotations

import pathlib
import time
import warnings

import digits as digits_data
import interval_figure
import results
import tensorflow_model_optimization as tfmot
import tf_keras as keras
import training
from absl import app, flags, logging

import tfqil

_OUTPUT = flags.DEFINE_string("output", "examples/output", "Folder for the files and the figure.")
_FLOAT_EPOCHS = flags.DEFINE_integer("float_epochs", 60, "Epochs of the float network.", lower_bound=1)
_EPOCHS = flags.DEFINE_integer("epochs", 12, "Epochs of each quantized network.", lower_bound=1)
_WIDTH = flags.DEFINE_integer("width", 32, "Channels of the first block.", lower_bound=4)
_STORAGE = flags.DEFINE_enum("storage", "fastest", ["fastest", "smallest", "int8"], "How the files store weights.")
_SEED = flags.DEFINE_integer("seed", 1, "Seed of weights and batches.")

# Fine-tuning starts from a good network: the fewer the bits, the farther it has to go.
LEARNING_RATES = {8: 3e-4, 4: 3e-4, 3: 5e-4, 2: 1e-3}


def main(_: list[str]) -> None:
    started = time.perf_counter()
    logging.set_verbosity(logging.ERROR)
    warnings.filterwarnings("ignore", "Statistics for quantized inputs were expected")  # TFMOT's row.
    keras.utils.set_random_seed(_SEED.value)
    data = digits_data.load_digits()
    output = pathlib.Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)

    with training.progress_display() as progress:
        trainer = training.Trainer(data, progress, _SEED.value)
        network = digits_data.residual_network(_WIDTH.value)
        trainer.fit(network, "float", _FLOAT_EPOCHS.value, 3e-3)
        rows = [results.float_row(network, data)]

        eight_bit = tfmot.quantization.keras.quantize_model(network)
        trainer.fit(eight_bit, "TFMOT 8-bit", _EPOCHS.value, LEARNING_RATES[8])
        rows.append(results.tfmot_row(eight_bit, data))

        q_model = tfqil.quantize_model(network, tfqil.QILQuantizeConfig(8, 8))
        for bits in LEARNING_RATES:
            q_model = tfqil.with_bits(q_model, bits, bits, intervals="fit")
            tfqil.calibrate(q_model, data.train_images)
            trainer.fit(q_model, f"QIL {bits}/{bits}", _EPOCHS.value, LEARNING_RATES[bits])
            rows.append(results.tfqil_row(q_model, f"QIL {bits}/{bits}", data, _STORAGE.value))

    results.write_files(rows, output)
    figure = interval_figure.draw(q_model, output / "intervals.png")
    console = results.console()
    console.print(results.table(rows))
    console.print(f"Files and figure: {output}, {figure.name}. {time.perf_counter() - started:.0f} s in all.")


if __name__ == "__main__":
    app.run(main)
