"""Layers of Keras become nodes of the graph: one function for each kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..graph import LARGEST_KERNEL, Array, Graph, GraphError
from .model import ModelFileError, Options, begin


class Layer(NamedTuple):
    """A layer as its model describes it: `kind` is its class, `config` its arguments, `inputs` what it reads."""

    name: str
    kind: str
    config: Mapping[str, Any]
    inputs: tuple[str, ...]


def build(
    layers: Sequence[Layer], weights: Mapping[str, list[Array]], output: str, options: Options
) -> tuple[Graph, str]:
    """The graph of the layers, not finished, and the name of its last tensor.

    Layers come in an order in which they can be computed, as Keras writes them.
    """
    images = [layer for layer in layers if layer.kind == "InputLayer"]
    if len(images) != 1:
        raise ModelFileError(f"it must have one input, got {len(images)}")
    shape = images[0].config.get("batch_shape") or images[0].config.get("batch_input_shape") or []
    if len(shape) != 4 or shape[3] not in (1, 2, 3, 4):
        raise ModelFileError(f"its input must be (height, width, channels) with 1 to 4 channels, got {shape[1:]}")
    sides = [side for side in shape[1:3] if side is not None]
    graph = Graph(shape[3], tile=options.tile or max(sides, default=256))
    tensors: dict[str, str] = {}
    for layer in layers:
        try:
            inputs = [tensors[name] for name in layer.inputs]
            call = _Call(graph, layer, inputs, weights.get(layer.name, []), options)
            tensors[layer.name] = LAYERS[layer.kind](call)
        except (ModelFileError, GraphError) as error:
            raise ModelFileError(f"layer {layer.name!r} ({layer.kind}): {error}") from None
        except (ArithmeticError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ModelFileError(
                f"layer {layer.name!r} ({layer.kind}): arguments or weights are not as Keras has them ({error!r})"
            ) from None
    return graph, tensors[output]


class _Call(NamedTuple):
    """One layer, with the tensors that it reads and its weights in their order in the file."""

    graph: Graph
    layer: Layer
    inputs: list[str]
    weights: list[Array]
    options: Options

    @property
    def name(self) -> str:
        return self.layer.name

    @property
    def config(self) -> Mapping[str, Any]:
        return self.layer.config

    @property
    def x(self) -> str:
        if len(self.inputs) != 1:
            raise ModelFileError(f"it must read one tensor, got {len(self.inputs)}")
        return self.inputs[0]

    def requires(self, key: str, *accepted: Any) -> None:
        """The first of `accepted` is the default."""
        value = self.config.get(key, accepted[0])
        if value not in accepted:
            raise ModelFileError(f"{key} must be {' or '.join(map(str, accepted))}, got {value}")

    def pair(self, key: str, default: int) -> list[int]:
        value = self.config.get(key, default)
        return [int(value)] * 2 if isinstance(value, int) else [int(part) for part in value]

    def array(self, index: int, what: str, axes: int) -> Array:
        if index >= len(self.weights):
            raise ModelFileError(f"the file has no {what} for it")
        if self.weights[index].ndim != axes:
            raise ModelFileError(f"its {what} must have {axes} axes, got the shape {self.weights[index].shape}")
        return self.weights[index]


def _input(call: _Call) -> str:
    return begin(call.graph, call.options)


def _same(call: _Call) -> str:
    return call.x


def _kernel_and_bias(call: _Call) -> tuple[Array, Array | None]:
    call.requires("data_format", "channels_last")
    call.requires("dilation_rate", [1, 1], 1)
    call.requires("groups", 1)
    kernel = call.array(0, "kernel", 4)
    if max(kernel.shape[:2]) > LARGEST_KERNEL:
        limit = f"{LARGEST_KERNEL} x {LARGEST_KERNEL}"
        raise ModelFileError(f"kernels up to {limit} are possible, got {kernel.shape[0]} x {kernel.shape[1]}")
    return kernel, call.array(1, "bias", 1) if call.config.get("use_bias", True) else None


def _conv(call: _Call) -> str:
    kernel, bias = _kernel_and_bias(call)
    call.requires("strides", [1, 1], 1)
    call.requires("padding", "valid", "same")
    padding = [0, 0, 0, 0]
    if call.config.get("padding") == "same":
        before = [(size - 1) // 2 for size in kernel.shape[:2]]
        padding = [*before, *(size - 1 - first for size, first in zip(kernel.shape[:2], before, strict=True))]
    x = call.graph.conv(call.name, call.x, kernel.transpose(3, 0, 1, 2), bias, padding)
    return _activated(call, x)


def _conv_transpose(call: _Call) -> str:
    kernel, bias = _kernel_and_bias(call)
    call.requires("padding", "valid", "same")
    call.requires("output_padding", None)
    strides = call.pair("strides", 1)
    more = [size - stride for size, stride in zip(kernel.shape[:2], strides, strict=True)]
    if min(more) < 0:
        raise ModelFileError(f"its kernel must not be smaller than its strides {strides}")
    padding = [0, 0, 0, 0]
    if call.config.get("padding") == "same":
        padding = [*(total // 2 for total in more), *(total - total // 2 for total in more)]
    # (ky, kx, out, in) -> (out, ky, kx, in)
    x = call.graph.conv_transpose(call.name, call.x, kernel.transpose(2, 0, 1, 3), bias, strides, padding)
    return _activated(call, x)


def _activated(call: _Call, x: str) -> str:
    """`x` behind the activation that a layer has as an argument."""
    activation = call.config.get("activation", "linear")
    if isinstance(activation, Mapping):  # Keras 3 wraps some of them
        activation = activation.get("config")
    if activation in (None, "linear"):
        return x
    if activation not in ("relu", "sigmoid", "softmax", "tanh"):
        raise ModelFileError(f"activation must be linear, relu, sigmoid, softmax or tanh, got {activation}")
    return call.graph.activation(f"{call.name}.{activation}", x, activation)


def _activation(call: _Call) -> str:
    return _activated(call, call.x)


def _relu(call: _Call) -> str:
    call.requires("max_value", None)
    call.requires("threshold", 0)
    slope = float(call.config.get("negative_slope") or 0)
    return call.graph.activation(call.name, call.x, "leaky_relu" if slope else "relu", slope)


def _leaky_relu(call: _Call) -> str:
    slope = call.config["alpha"] if "alpha" in call.config else call.config["negative_slope"]
    return call.graph.activation(call.name, call.x, "leaky_relu", float(slope))


def _softmax(call: _Call) -> str:
    call.requires("axis", -1, 3, [3], [-1])
    return call.graph.activation(call.name, call.x, "softmax")


def _batch_norm(call: _Call) -> str:
    call.requires("axis", -1, 3, [3], [-1])
    arrays = iter(range(4))
    ones = np.ones(call.graph.shapes[call.x].channels)
    gamma = call.array(next(arrays), "gamma", 1) if call.config.get("scale", True) else ones
    beta = call.array(next(arrays), "beta", 1) if call.config.get("center", True) else 0 * ones
    mean, variance = call.array(next(arrays), "moving_mean", 1), call.array(next(arrays), "moving_variance", 1)
    return call.graph.batch_norm(call.name, call.x, gamma, beta, mean, variance, float(call.config["epsilon"]))


def _rescaling(call: _Call) -> str:
    channels = call.graph.shapes[call.x].channels
    scale, offset = (
        np.broadcast_to(np.asarray(call.config[key], np.float64), (channels,)) for key in ("scale", "offset")
    )
    return call.graph.affine(call.name, call.x, scale, offset)


def _lambda(call: _Call) -> str:
    if not call.options.skip_lambda:
        raise ModelFileError(
            "it holds Python code, which is never run; if it does no more than divide pixels by 255, import the model "
            "with skip_lambda (--skip-lambda): the engine does that already"
        )
    return call.x


def _pool(mode: str) -> Callable[[_Call], str]:
    def layer(call: _Call) -> str:
        call.requires("data_format", "channels_last")
        size = call.pair("pool_size", 2)
        if call.config.get("strides") is not None and call.pair("strides", 2) != size:
            raise ModelFileError(f"its strides must be its pool_size {size}, got {call.config['strides']}")
        return call.graph.pool(call.name, call.x, mode, size)  # sizes divide exactly, so "same" pads nothing

    return layer


def _upsampling(call: _Call) -> str:
    call.requires("data_format", "channels_last")
    call.requires("interpolation", "nearest", "bilinear")
    size = call.pair("size", 2)
    if size[0] != size[1]:
        raise ModelFileError(f"it must be by the same size along both axes, got {size}")
    return call.graph.upsample(call.name, call.x, call.config.get("interpolation", "nearest"), size[0])


def _concatenate(call: _Call) -> str:
    call.requires("axis", -1, 3)
    return call.graph.concat(call.name, *call.inputs)


def _add(call: _Call) -> str:
    x, *others = call.inputs
    for number, other in enumerate(others, 1):
        x = call.graph.add(call.name if number == len(others) else f"{call.name}.{number}", x, other)
    return x


def _sides(call: _Call, key: str) -> list[int]:
    """((top, bottom), (left, right)) as [top, left, bottom, right]."""
    call.requires("data_format", "channels_last")
    (top, bottom), (left, right) = call.config[key]
    return [top, left, bottom, right]


def _zero_padding(call: _Call) -> str:
    return call.graph.pad(call.name, call.x, _sides(call, "padding"))


def _cropping(call: _Call) -> str:
    return call.graph.pad(call.name, call.x, [-side for side in _sides(call, "cropping")])


#: Every kind of layer that can be imported.
LAYERS: dict[str, Callable[[_Call], str]] = {
    "InputLayer": _input,
    "Conv2D": _conv,
    "Conv2DTranspose": _conv_transpose,
    "BatchNormalization": _batch_norm,
    "Activation": _activation,
    "ReLU": _relu,
    "LeakyReLU": _leaky_relu,
    "Softmax": _softmax,
    "MaxPooling2D": _pool("max"),
    "AveragePooling2D": _pool("average"),
    "UpSampling2D": _upsampling,
    "Concatenate": _concatenate,
    "Add": _add,
    "ZeroPadding2D": _zero_padding,
    "Cropping2D": _cropping,
    "Rescaling": _rescaling,
    "Lambda": _lambda,
    **dict.fromkeys(("Dropout", "SpatialDropout2D", "GaussianNoise", "GaussianDropout"), _same),
}
