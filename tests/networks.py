"""Networks for every test: the whole family of `UNetSpec`, with random weights, and a few graphs that it has not.

spec = SPECS["valid"]
weights = random_weights(spec, seed=3)      # names as in spec.py, float32
graph = from_spec(spec, weights)
path = frozen("valid", tmp_path, seed=3)    # an engine file
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from unet_fast.freeze import freeze
from unet_fast.fuse import fuse
from unet_fast.graph import ACTIVATIONS, UPSAMPLINGS, Graph, Node, Normalisation, from_spec
from unet_fast.spec import UNetSpec

#: One spec for each choice that the family offers, small, with names for test ids.
SPECS: dict[str, UNetSpec] = {
    "relunet16": UNetSpec.preset("relunet16"),
    "plain": UNetSpec(base_width=8, depth=2, tile=32),
    "rgb": UNetSpec(in_channels=3, base_width=8, depth=3, tile=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)),
    "two_channels": UNetSpec(in_channels=2, base_width=8, depth=2, tile=32, std=(0.5,)),
    "four_channels": UNetSpec(in_channels=4, base_width=8, depth=2, tile=32),
    "classes": UNetSpec(classes=5, base_width=8, depth=2, tile=32, class_names=("a", "b", "c", "d", "e")),
    "regression": UNetSpec(classes=3, output="identity", base_width=8, depth=2, tile=32),
    "standardise": UNetSpec(base_width=8, depth=2, tile=32, normalisation="standardise"),
    "depth5": UNetSpec(base_width=8, depth=5, tile=64),
    "one_conv": UNetSpec(base_width=16, depth=3, convs_per_stage=1, tile=32),
    "width24": UNetSpec(base_width=24, depth=2, tile=32),
    "batch_norm": UNetSpec(base_width=8, depth=3, batch_norm=True, tile=32),
    "leaky": UNetSpec(base_width=8, depth=2, activation="leaky_relu", batch_norm=True, tile=32),
    "skip_first": UNetSpec(base_width=8, depth=3, concat="skip_first", tile=32),
    "up_relu": UNetSpec(base_width=8, depth=2, up_activation="relu", tile=32),
    "nearest": UNetSpec(base_width=8, depth=3, upsampling="nearest", tile=32),
    "nearest_skip_first": UNetSpec(base_width=8, depth=2, upsampling="nearest", concat="skip_first", tile=32),
    "nearest_conv": UNetSpec(base_width=8, depth=3, upsampling="nearest_conv", up_activation="relu", tile=32),
    "nearest_conv_linear": UNetSpec(base_width=8, depth=2, upsampling="nearest_conv", concat="skip_first", tile=32),
    "bilinear": UNetSpec(base_width=8, depth=3, upsampling="bilinear", tile=32),
    "bilinear_corners": UNetSpec(
        base_width=8, depth=2, upsampling="bilinear", align_corners=True, concat="skip_first", tile=32
    ),
    "valid": UNetSpec(base_width=8, depth=3, padding="valid", tile=92),
    "valid_one_conv": UNetSpec(base_width=8, depth=2, padding="valid", convs_per_stage=1, classes=2, tile=44),
    "valid_nearest": UNetSpec(base_width=8, depth=2, padding="valid", upsampling="nearest", tile=44),
    "valid_nearest_conv": UNetSpec(base_width=8, depth=2, padding="valid", upsampling="nearest_conv", tile=44),
    "valid_bilinear": UNetSpec(base_width=8, depth=2, padding="valid", upsampling="bilinear", tile=44),
    "valid_corners": UNetSpec(
        base_width=8, depth=2, padding="valid", upsampling="bilinear", align_corners=True, tile=44
    ),
}

#: Ronneberger 2015 with a quarter of the filters: 572 -> 388.
RONNEBERGER = UNetSpec(classes=2, base_width=16, padding="valid", up_activation="relu", concat="skip_first", tile=572)


def random_weights(spec: UNetSpec, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Float32 weights with He scale, so that activations neither fade nor grow, and uneven batch norm statistics."""
    random = np.random.default_rng(seed)
    weights: dict[str, np.ndarray[Any, Any]] = {}

    def draw(name: str, outputs: int, inputs: int, kernel: int, *, transposed: bool = False, bias: bool = True) -> None:
        shape = (inputs, outputs, kernel, kernel) if transposed else (outputs, inputs, kernel, kernel)
        fan_in = inputs if transposed else inputs * kernel * kernel
        weights[f"{name}.weight"] = random.normal(0, math.sqrt(2 / fan_in), shape).astype(np.float32)
        if bias:
            weights[f"{name}.bias"] = random.normal(0, 0.2, outputs).astype(np.float32)

    def stage(name: str, inputs: int, outputs: int) -> None:
        for index in range(spec.convs_per_stage):
            draw(f"{name}.conv{index}", outputs, inputs, 3, bias=not spec.batch_norm)
            inputs = outputs
            if spec.batch_norm:
                norm = f"{name}.norm{index}"
                weights[f"{norm}.weight"] = random.uniform(0.5, 1.5, outputs).astype(np.float32)
                weights[f"{norm}.bias"] = random.normal(0, 0.2, outputs).astype(np.float32)
                weights[f"{norm}.running_mean"] = random.normal(0, 0.3, outputs).astype(np.float32)
                weights[f"{norm}.running_var"] = random.uniform(0.3, 3, outputs).astype(np.float32)

    channels = spec.in_channels
    for level in range(spec.depth):
        stage(f"encoder{level}", channels, spec.width(level))
        channels = spec.width(level)
    stage("bottleneck", channels, spec.width(spec.depth))
    channels = spec.width(spec.depth)
    for level in reversed(range(spec.depth)):
        width = spec.width(level)
        if spec.upsampling == "transpose":
            draw(f"up{level}", width, channels, 2, transposed=True)
            channels = width
        elif spec.upsampling == "nearest_conv":
            draw(f"up{level}", width, channels, 2)
            channels = width
        stage(f"decoder{level}", channels + width, width)
        channels = width
    draw("head", spec.classes, channels, 1)
    return weights


def odd_graph(seed: int = 0) -> Graph:
    """What no spec makes: every plain op, uneven kernels and padding, sums, scale 3, a leading batch norm."""
    random = np.random.default_rng(seed)

    def weight(outputs: int, rows: int, columns: int, inputs: int) -> np.ndarray[Any, Any]:
        return random.normal(0, math.sqrt(2 / (rows * columns * inputs)), (outputs, rows, columns, inputs))

    def bias(outputs: int) -> np.ndarray[Any, Any]:
        return random.normal(0, 0.2, outputs)

    graph = Graph(2, Normalisation("fixed", (0.3, 0.6), (0.5, 0.25)), tile=48)
    x = graph.normalise()
    x = graph.batch_norm("norm", x, bias(2) + 1, bias(2), bias(2), random.uniform(0.5, 2, 2))
    x = graph.conv("wide", x, weight(8, 1, 4, 2), bias(8), (0, 1, 0, 2))
    x = graph.activation("tanh", x, "tanh")
    x = graph.conv("tall", x, weight(8, 4, 3, 8), bias(8), (2, 1, 1, 1))
    skip = x = graph.activation("leaky", x, "leaky_relu", 0.2)
    x = graph.pool("average", x, "average", (3, 3))
    x = graph.conv("low", x, weight(16, 3, 3, 8), bias(16), (1, 1, 1, 1))
    x = graph.upsample("triple", x, "bilinear", 3)
    x = graph.conv("pointwise", x, weight(8, 1, 1, 16), bias(8))
    x = graph.add("sum", x, skip)
    skip = x = graph.activation("sum_relu", x, "relu")
    x = graph.pool("maximum", x)
    x = graph.conv_transpose("up", x, weight(8, 3, 3, 8), bias(8), (2, 2), (0, 1, 1, 0))
    x = graph.activation("up_sigmoid", x, "sigmoid")
    x = graph.concat("three", x, skip, x)
    x = graph.pad("surround", x, (1, 0, 1, 2))
    x = graph.conv("even", x, weight(8, 2, 2, 24), bias(8), (0, 0, 0, 0))
    x = graph.pad("cut", x, (-1, -1, 0, 0))
    x = graph.conv("widen", x, weight(8, 2, 2, 8), bias(8), (0, 1, 1, 0))
    x = graph.activation("softmax", x, "softmax")
    x = graph.conv("logits", x, weight(3, 1, 1, 8), bias(3))
    return graph.finish(x, "softmax")


def random_graph(seed: int) -> Graph:
    """A U-shaped graph of random ops, kernels, paddings, skips and widths; legal sizes are multiples of 8 at most."""
    random = np.random.default_rng(seed)
    graph = Graph(int(random.integers(1, 5)), tile=16)
    count = iter(range(1000))

    def conv(x: str, outputs: int, kernel: tuple[int, int] | None = None) -> str:
        """A convolution that keeps height and width, its padding split at random."""
        rows, columns = kernel or (int(side) for side in random.integers(1, 5, 2))
        inputs = graph.shapes[x].channels
        weight = random.normal(0, math.sqrt(2 / (rows * columns * inputs)), (outputs, rows, columns, inputs))
        top, left = (int(random.integers(0, side)) for side in (rows, columns))
        if kernel is not None:
            top, left = (rows - 1) // 2, (columns - 1) // 2
        padding = (top, left, rows - 1 - top, columns - 1 - left)
        name = f"conv{next(count)}"
        if random.random() < 0.2:
            x, padding = graph.pad(f"{name}.pad", x, padding), (0, 0, 0, 0)
        return graph.conv(name, x, weight, random.normal(0, 0.2, outputs), padding)

    def layers(x: str) -> str:
        for _ in range(random.integers(1, 4)):
            kind, name = random.choice(["conv", "conv", "conv3", "norm", "activation", "add"]), f"layer{next(count)}"
            channels = graph.shapes[x].channels
            if kind.startswith("conv"):
                x = conv(x, int(random.integers(1, 7)), (3, 3) if kind == "conv3" else None)
            elif kind == "norm":
                scale, variance = random.uniform(0.5, 2, (2, channels))
                bias, mean = random.normal(0, 0.3, (2, channels))
                x = graph.batch_norm(name, x, scale, bias, mean, variance)
            elif kind == "activation":
                x = graph.activation(name, x, str(random.choice(ACTIVATIONS)), 0.1)
            else:
                x = graph.add(name, conv(x, channels), x)
        return graph.activation(f"relu{next(count)}", x, "relu") if random.random() < 0.5 else x

    def up(x: str) -> str:
        name, channels = f"up{next(count)}", graph.shapes[x].channels
        mode = random.choice(["transpose", *UPSAMPLINGS])
        if mode == "transpose":
            outputs = int(random.integers(1, 5))
            weight = random.normal(0, math.sqrt(2 / channels), (outputs, 2, 2, channels))
            x = graph.conv_transpose(name, x, weight, random.normal(0, 0.2, outputs))
        else:
            x = graph.upsample(name, x, str(mode))
        return conv(x, int(random.integers(1, 5)), (1, 1)) if random.random() < 0.3 else x

    def level(x: str, depth: int) -> str:
        x = skip = layers(x)
        if depth == 0:
            return x
        x = graph.pool(f"pool{next(count)}", x, str(random.choice(["max", "max", "average"])))
        parts = [up(level(x, depth - 1)), skip]
        random.shuffle(parts)
        x = graph.concat(f"concat{next(count)}", *parts)
        return layers(conv(x, int(random.integers(1, 7)), (3, 3) if random.random() < 0.7 else None))

    x = level(graph.normalise(), int(random.integers(1, 4)))
    return graph.finish(conv(x, int(random.integers(2, 4)), (1, 1)), "softmax")


def nuclei_graph(folder: Path, normalisation: Normalisation | None = None) -> Graph:
    """The published network of `reference_unet_nuclei` in the shared data, from its weights.

    Two convolutions before each activation, bilinear upsampling before a 1x1 convolution, skips first.
    """

    def weight(name: str) -> np.ndarray[Any, Any]:
        return np.load(folder / "weights" / f"{name}.weight.npy").transpose(0, 2, 3, 1)

    def conv(x: str, name: str, padding: int) -> str:
        bias = np.load(folder / "weights" / f"{name}.bias.npy")
        return graph.conv(name, x, weight(name), bias, (padding,) * 4)

    def block(x: str, name: str) -> str:
        return graph.activation(f"{name}.relu", conv(conv(x, f"{name}.0", 1), f"{name}.1", 1), "relu")

    graph = Graph(1, normalisation or Normalisation("standardise"), tile=256)
    x = graph.normalise()
    skips = []
    for level in range(3):
        x = block(x, f"encoders.{level}")
        skips.append(x)
        x = graph.pool(f"pool{level}", x)
    x = block(x, "base")
    for index in range(3):
        x = conv(graph.upsample(f"upsamplers.{index}.0", x, "bilinear"), f"upsamplers.{index}.1", 0)
        x = block(graph.concat(f"concat{index}", skips[2 - index], x), f"decoders.{index}")
    return graph.finish(conv(x, "output", 0), "sigmoid", name="result")


def lines_graph(seed: int = 0) -> Graph:
    """Columns of the image and rows of a smaller tensor divided by their norms, with two channels and with five."""
    random = np.random.default_rng(seed)

    def conv(name: str, x: str, outputs: int) -> str:
        inputs = graph.shapes[x].channels
        weight = random.normal(0, math.sqrt(2 / (9 * inputs)), (outputs, 3, 3, inputs))
        return graph.conv(name, x, weight, random.normal(0, 0.2, outputs), (1, 1, 1, 1))

    graph = Graph(2, Normalisation("fixed", (0.0,), (0.5,)), tile=32)
    x = graph.l2_normalise("columns", graph.normalise(), "columns")
    skip = x = graph.activation("relu0", conv("conv0", x, 8), "relu")
    x = graph.l2_normalise("rows", conv("conv1", graph.pool("pool", x), 5), "rows")
    x = conv("conv2", graph.concat("concat", graph.upsample("up", x), skip), 3)
    return graph.finish(x, "softmax")


#: Graphs that are built by hand: name -> function of a seed.
GRAPHS: dict[str, Callable[[int], Graph]] = {"odd": odd_graph, "lines": lines_graph}
NAMES = (*SPECS, *GRAPHS)


@functools.cache
def graph_of(name: str, seed: int = 0) -> Graph:
    """The network called `name` in `NAMES`, with random weights.  Made once; not to be changed."""
    if name in GRAPHS:
        return GRAPHS[name](seed)
    return from_spec(SPECS[name], random_weights(SPECS[name], seed))


@functools.cache
def fused_of(name: str, seed: int = 0) -> Graph:
    """Like `graph_of`, fused."""
    return fuse(graph_of(name, seed))


def frozen(name: str, /, folder: Path, seed: int = 0, **options: Any) -> Path:
    """An engine file of the network called `name`; `options` are those of `freeze`."""
    return freeze(graph_of(name, seed), folder / f"{name}.unet", **options)


def judge(graph: Graph, pixels: np.ndarray[Any, Any], *, logits: bool = False) -> np.ndarray[Any, Any]:
    """What PyTorch makes of a graph that is not fused, in float64: pixels (N, H, W, C) in [0, 1] -> (N, h, w, K)."""
    import torch
    from torch.nn import functional

    x = torch.from_numpy(np.ascontiguousarray(pixels, np.float64).transpose(0, 3, 1, 2))
    rule = graph.normalisation
    if rule.kind == "fixed":
        mean, std = (torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1, 1) for values in (rule.mean, rule.std))
        x = (x - mean) / std
    else:
        deviation = x.std((1, 2, 3), correction=0, keepdim=True)
        x = (x - x.mean((1, 2, 3), keepdim=True)) / (deviation + rule.epsilon)

    def compute(node: Node, *inputs: Any) -> Any:
        weights = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in node.tensors.items()}
        values, (x, *_) = node.attributes, inputs
        if node.kind == "conv":
            top, left, bottom, right = values["padding"]
            padded = functional.pad(x, (left, right, top, bottom))
            return functional.conv2d(padded, weights["weight"].permute(0, 3, 1, 2), weights["bias"])
        if node.kind == "conv_transpose":
            weight = weights["weight"].permute(3, 0, 1, 2)
            full = functional.conv_transpose2d(x, weight, weights["bias"], stride=values["stride"])
            top, left, bottom, right = values["padding"]
            return functional.pad(full, (-left, -right, -top, -bottom))
        if node.kind == "batch_norm":
            mean, variance = weights["running_mean"], weights["running_var"]
            return functional.batch_norm(x, mean, variance, weights["weight"], weights["bias"], eps=values["epsilon"])
        if node.kind == "pool":
            pool = functional.max_pool2d if values["mode"] == "max" else functional.avg_pool2d
            return pool(x, values["kernel"])
        if node.kind == "upsample":
            if values["mode"] == "nearest":
                return functional.interpolate(x, scale_factor=values["scale"], mode="nearest")
            corners = values["mode"] == "bilinear_corners"
            return functional.interpolate(x, scale_factor=values["scale"], mode="bilinear", align_corners=corners)
        if node.kind == "pad":
            top, left, bottom, right = values["padding"]
            return functional.pad(x, (left, right, top, bottom))
        if node.kind == "activation":
            if values["activation"] == "leaky_relu":
                return functional.leaky_relu(x, values["slope"])
            if values["activation"] == "softmax":
                return x.softmax(1)
            return getattr(torch, values["activation"])(x)
        return {
            "concat": lambda: torch.cat(inputs, 1),
            "add": lambda: inputs[0] + inputs[1],
            "l2_normalise": lambda: functional.normalize(x, dim=2 if values["mode"] == "columns" else 3, eps=1e-300),
            "normalise": lambda: x,
            "output": lambda: x,
        }[node.kind]()

    tensors = {"image": x}
    for node in graph.nodes:
        x = compute(node, *(tensors[name] for name in node.inputs))
        tensors.update(dict.fromkeys(node.outputs, x))
    if not logits and graph.output != "identity":
        x = x.sigmoid() if graph.output == "sigmoid" else x.softmax(1)
    return x.numpy().transpose(0, 2, 3, 1)
