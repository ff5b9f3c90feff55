"""Packaging of tfqil."""

from __future__ import annotations

import pathlib

import setuptools

PLOTS = ["matplotlib>=3.8"]
# The networks and data sets that the benchmarks and tests run: tfqil itself needs neither.
ZOO = ["keras-cv>=0.9,<1", "pycocotools>=2.0.7", "tensorflow-datasets>=4.9"]
NOTEBOOK = ["ipykernel", "nbclient", "nbformat"]
DEVELOPMENT = ["hypothesis", "import-linter>=2", "mypy", "pytest>=8", "pytest-xdist", "ruff", "scikit-learn"]

setuptools.setup(
    name="tfqil",
    version="0.1.0",
    description="Low-bit training for TensorFlow Model Optimization, integer for integer in LiteRT",
    long_description=pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=setuptools.find_packages(include=["tfqil", "tfqil.*"]),
    package_data={"tfqil": ["py.typed"]},
    python_requires=">=3.10,<3.13",
    install_requires=[
        # The tests run on TensorFlow 2.21; what tfqil uses of TFMOT was checked on 2.19 too.
        # tf-keras of a minor version asks for TensorFlow of the same one, so pip keeps the two together.
        "tensorflow>=2.19,<2.22",
        "tf-keras>=2.19,<2.22",
        "tensorflow-model-optimization>=0.8.1,<0.9",
        "ai-edge-litert>=2.3,<3",
        # TFMOT 0.8 stops at 1.x itself.
        "absl-py>=1.2,<2",
        "flatbuffers>=24.3.25",
        "numpy>=1.26",
        "rich>=13",
    ],
    extras_require={"plots": PLOTS, "zoo": ZOO, "dev": sorted(DEVELOPMENT + NOTEBOOK + PLOTS + ZOO)},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
