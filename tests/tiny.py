"""Networks of a few dozen weights, for tests that open and run them a million times, and their engine files.

data = engine_bytes("unet")                 # without golden pairs: as small as can be
path = freeze("unet", folder)               # as `unet_fast.freeze` writes it, with golden pairs of 16 x 16
paths = GOLDEN                              # as each format version wrote them

`python -m tests.tiny` writes the golden files of this format version where there are none; none is ever replaced.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from tests.pixels import random_image
from unet_fast import engine_file
from unet_fast.fuse import fuse
from unet_fast.graph import Graph, Normalisation

Array = np.ndarray[Any, Any]

freezing = importlib.import_module("unet_fast.freeze")  # `unet_fast.freeze` is the function


class _Draw:
    """Weights that are the same on every machine."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(11)

    def weight(self, *shape: int) -> Array:
        return self.random.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)

    def bias(self, count: int) -> Array:
        return self.random.normal(0, 0.2, count)

    def relu(self, graph: Graph, name: str, x: str, outputs: int) -> str:
        weight = self.weight(outputs, 3, 3, graph.shapes[x].channels)
        return graph.activation(f"{name}.relu", graph.conv(name, x, weight, self.bias(outputs), (1, 1, 1, 1)), "relu")

    def finish(self, graph: Graph, x: str, outputs: int, kind: str) -> Graph:
        weight = self.weight(outputs, 1, 1, graph.shapes[x].channels)
        return graph.finish(graph.conv("last", x, weight, self.bias(outputs)), kind)


def bare() -> Graph:
    """The image, normalised, is the result."""
    graph = Graph(1, Normalisation("fixed", (0.5,), (0.25,)), tile=4)
    return graph.finish(graph.normalise(), "identity")


def unet() -> Graph:
    """One pooling, a transposed convolution back, a skip: stem, conv with pooling, up_conv, head."""
    draw, graph = _Draw(), Graph(1, tile=16)
    skip = x = draw.relu(graph, "down1", draw.relu(graph, "down0", graph.normalise(), 2), 2)
    x = draw.relu(graph, "low", graph.pool("pool", x), 3)
    x = graph.concat("join", graph.conv_transpose("up", x, draw.weight(2, 2, 2, 3), draw.bias(2)), skip)
    return draw.finish(graph, draw.relu(graph, "joined", x, 2), 1, "sigmoid")


def classes() -> Graph:
    """Colour in, three classes out, bilinear upsampling, standardised."""
    draw, graph = _Draw(), Graph(3, Normalisation("standardise"), tile=8)
    skip = x = draw.relu(graph, "first", graph.normalise(), 2)
    x = draw.relu(graph, "low", graph.pool("pool", x), 2)
    x = graph.concat("join", graph.upsample("up", x, "bilinear"), skip)
    return draw.finish(graph, draw.relu(graph, "joined", x, 2), 3, "softmax")


def plain() -> Graph:
    """The ops that nothing is fused with."""
    draw, graph = _Draw(), Graph(2, Normalisation("fixed", (0.3, 0.6), (0.5, 0.25)), tile=12)
    x = graph.batch_norm("norm", graph.normalise(), draw.bias(2) + 1, draw.bias(2), draw.bias(2), np.array([0.5, 2.0]))
    skip = x = graph.activation("leaky", graph.conv("wide", x, draw.weight(2, 1, 3, 2), draw.bias(2), (0, 1, 0, 1)),
                                "leaky_relu", 0.2)  # fmt: skip
    x = graph.upsample("triple", graph.pool("average", x, "average", (3, 3)), "nearest", 3)
    x = graph.activation("tanh", graph.add("sum", x, skip), "tanh")
    x = graph.conv_transpose(
        "up", graph.pool("maximum", x), draw.weight(2, 3, 3, 2), draw.bias(2), (2, 2), (0, 1, 1, 0)
    )
    x = graph.pad("cut", graph.pad("surround", graph.concat("join", x, skip), (1, 0, 1, 2)), (-1, 0, -1, -2))
    x = graph.l2_normalise("columns", x, "columns")
    return draw.finish(graph, x, 2, "identity")


GRAPHS: dict[str, Callable[[], Graph]] = {"bare": bare, "unet": unet, "classes": classes, "plain": plain}


def engine_bytes(name: str) -> bytes:
    """The engine file of a graph without golden pairs."""
    graph = GRAPHS[name]()
    fused = fuse(graph)
    output = {
        "kind": graph.output,
        "channels": graph.result.channels,
        "threshold": 0.5,
        "class_names": [],
        "palette": [],
    }
    facts = {"name": name, "precision": "float32", "output": output, "golden": [], "accuracy": {}, "kernels": []}
    weights = {
        f"{node.name}.{key}": array.astype(np.float32) for node in fused.nodes for key, array in node.tensors.items()
    }
    return engine_file.serialise(freezing.describe(graph, fused) | facts, weights)


def freeze(name: str, /, folder: Path, **options: Any) -> Path:
    """What `unet_fast.freeze` makes of a graph, with golden pairs of 16 x 16."""
    with mock.patch.object(freezing, "GOLDEN_SIDE", 16):
        return freezing.freeze(GRAPHS[name](), folder / f"{name}.unet", **options)


def write_golden_files() -> None:
    """Those of this format version that are missing."""
    options = {
        "unet": {"precision": "fp16"},
        "classes": {"precision": "bf16"},
        "plain": {"precision": "float32"},
        "int8": {"precision": "int8", "calibration": random_image((4, 16, 16))},
    }
    for name, values in options.items():
        target = GOLDEN_FOLDER / f"version{engine_file.FORMAT_VERSION}_{name}.unet"
        if not target.exists():
            with tempfile.TemporaryDirectory() as folder:
                path = freeze("unet" if name == "int8" else name, Path(folder), name=name, **values)
                target.write_bytes(path.read_bytes())


GOLDEN_FOLDER = Path(__file__).parent / "golden"
#: Engine files that every later reader opens.
GOLDEN = sorted(GOLDEN_FOLDER.glob("*.unet"))

if __name__ == "__main__":
    write_golden_files()
