"""Nodes of ONNX that work on the image become nodes of the graph: one function for each kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from ..graph import LARGEST_KERNEL, Array, Graph, canonical, canonical_transposed
from .model import ModelFileError
from .onnx_sizes import Length, objects, whole


class Tensor(NamedTuple):
    """A tensor of the graph and the order of its axes in the file, "NCHW" or "NHWC"."""

    name: str
    axes: str


class Call(NamedTuple):
    """One node that reads the image or what became of it.

    lengths  the shape of a tensor, of ints and `Length`s.
    """

    name: str
    inputs: list[Any]
    attributes: dict[str, Any]
    graph: Graph
    opset: int
    lengths: Callable[[Tensor], list[Any]]

    @property
    def x(self) -> Tensor:
        if not isinstance(self.inputs[0], Tensor):
            raise ModelFileError("its first input must depend on the image")
        return self.inputs[0]

    def image(self) -> str:
        """Name of the first input, which must have the axes NCHW."""
        if self.x.axes != "NCHW":
            raise ModelFileError("it is applied to a transposed tensor")
        return self.x.name

    def array(self, index: int) -> Array | None:
        """A constant input as float64; None where it is left out."""
        value = self.optional(index)
        if value is None:
            return None
        if isinstance(value, Tensor) or value.dtype == object:
            raise ModelFileError(f"input {index} must be a constant")
        return np.asarray(value, np.float64)

    def weight(self, index: int, rank: int) -> Array:
        array = self.array(index)
        if array is None or array.ndim != rank:
            axes = "none" if array is None else f"{array.ndim - 2} spatial axes"
            raise ModelFileError(f"only two-dimensional images are possible, got weights with {axes}")
        return array

    def optional(self, index: int) -> Any:
        return self.inputs[index] if index < len(self.inputs) else None

    def numbers(self, key: str, default: Sequence[int]) -> list[int]:
        return list(self.attributes.get(key, default))

    def requires(self, key: str, wanted: Any, default: Any) -> None:
        value = self.attributes.get(key, default)
        value = list(value) if isinstance(wanted, list) else value
        if value != wanted:
            raise ModelFileError(f"{key} must be {wanted}, got {value}")

    def result(self, name: str) -> Tensor:
        return Tensor(name, self.x.axes)


# -- layers: a call -> the tensor that it writes ---------------------------------------------------------------------


def no_layer(call: Call) -> Tensor:
    raise ModelFileError("it can be applied to sizes and constants only, not to the image")


def _same(call: Call) -> Any:
    return call.inputs[0]


def _pads(call: Call, kernel: Sequence[int], stride: Sequence[int]) -> list[int]:
    """[top, left, bottom, right]."""
    automatic = call.attributes.get("auto_pad", b"NOTSET").decode()
    if automatic in ("NOTSET", "VALID"):
        return call.numbers("pads", [0, 0, 0, 0]) if automatic == "NOTSET" else [0, 0, 0, 0]
    totals = [max(size - step, 0) for size, step in zip(kernel, stride, strict=True)]
    before = [total // 2 if automatic == "SAME_UPPER" else -(-total // 2) for total in totals]
    return [*before, *(total - first for total, first in zip(totals, before, strict=True))]


def _conv(call: Call) -> Tensor:
    weight = call.weight(1, 4)
    call.requires("strides", [1, 1], [1, 1])
    call.requires("dilations", [1, 1], [1, 1])
    call.requires("group", 1, 1)
    kernel = weight.shape[2:]
    _check_kernel(kernel)
    pads = _pads(call, kernel, (1, 1))
    x = call.image()
    if any(pad >= size for pad, size in zip(pads, 2 * kernel, strict=True)):
        x, pads = call.graph.pad(f"{call.name}.pad", x, pads), [0, 0, 0, 0]
    return call.result(call.graph.conv(call.name, x, canonical(weight), call.array(2), pads))


def _check_kernel(kernel: Sequence[int]) -> None:
    if max(kernel) > LARGEST_KERNEL:
        raise ModelFileError(f"kernels up to {LARGEST_KERNEL} x {LARGEST_KERNEL} are possible, got {list(kernel)}")


def _conv_transpose(call: Call) -> Tensor:
    weight = call.weight(1, 4)
    call.requires("dilations", [1, 1], [1, 1])
    call.requires("group", 1, 1)
    kernel, stride = weight.shape[2:], call.numbers("strides", [1, 1])
    _check_kernel(kernel)
    pads = _pads(call, kernel, stride)
    if "output_shape" in call.attributes or call.attributes.get("auto_pad", b"NOTSET").decode().startswith("SAME"):
        if any(pads) or list(kernel) != stride:
            raise ModelFileError("its padding must be given as pads, not as output_shape or auto_pad")
    else:
        more = call.numbers("output_padding", [0, 0])
        pads[2:] = [pad - extra for pad, extra in zip(pads[2:], more, strict=True)]
    if min(pads) < 0:
        raise ModelFileError("output_padding must not go beyond what pads take away")
    weight = canonical_transposed(weight)
    return call.result(call.graph.conv_transpose(call.name, call.image(), weight, call.array(2), stride, pads))


def _batch_norm(call: Call) -> Tensor:
    call.requires("training_mode", 0, 0)
    weights = [array for index in range(1, 5) if (array := call.array(index)) is not None]
    if len(weights) != 4:
        raise ModelFileError("it lacks scale, bias, mean or variance")
    scale, shift, mean, variance = weights
    epsilon = call.attributes.get("epsilon", 1e-5)
    return call.result(call.graph.batch_norm(call.name, call.image(), scale, shift, mean, variance, epsilon))


def _activation(kind: str) -> Callable[[Call], Tensor]:
    def layer(call: Call) -> Tensor:
        slope = float(call.attributes.get("alpha", 0.01))
        return call.result(call.graph.activation(call.name, call.x.name, kind, slope))

    return layer


def _prelu(call: Call) -> Tensor:
    slopes = call.array(1)
    if slopes is None or np.ptp(slopes) or not 0 <= slopes.flat[0] <= 1:
        raise ModelFileError("one slope in 0..1 for all channels is possible")
    return call.result(call.graph.activation(call.name, call.x.name, "leaky_relu", float(slopes.flat[0])))


def _clip(call: Call) -> Tensor:
    low, high = call.array(1), call.array(2)
    if low is None or low.item() != 0 or (high is not None and high.item() < np.finfo(np.float32).max):
        raise ModelFileError("only clipping at 0, without an upper end, is possible (a Relu)")
    return call.result(call.graph.activation(call.name, call.x.name, "relu"))


def _softmax(call: Call) -> Tensor:
    axis = call.attributes.get("axis", 1 if call.opset < 13 else -1)
    over = call.x.axes[axis]
    flattens = call.opset < 13 and axis % 4 != 3  # before opset 13 all later axes went into one sum
    if over != "C" or flattens:
        raise ModelFileError(f"it must go over the channels, got axis {axis} of {call.x.axes} at opset {call.opset}")
    return call.result(call.graph.activation(call.name, call.x.name, "softmax"))


def _pool(mode: str) -> Callable[[Call], Tensor]:
    def layer(call: Call) -> Tensor:
        kernel = call.numbers("kernel_shape", [])
        call.requires("strides", kernel, [1] * len(kernel))
        call.requires("dilations", [1] * len(kernel), [1] * len(kernel))
        if any(call.numbers("pads", [0])):
            raise ModelFileError(f"pooling must be without padding, got pads {call.numbers('pads', [0])}")
        return call.result(call.graph.pool(call.name, call.image(), mode, kernel))

    return layer


def _concat(call: Call) -> Tensor:
    axes = {value.axes if isinstance(value, Tensor) else "a constant" for value in call.inputs}
    if len(axes) != 1:
        raise ModelFileError(f"its inputs must be tensors of one order of axes, got {', '.join(sorted(axes))}")
    if call.x.axes[call.attributes["axis"]] != "C":
        raise ModelFileError(f"it must be along the channels, got axis {call.attributes['axis']} of {call.x.axes}")
    return call.result(call.graph.concat(call.name, *(value.name for value in call.inputs)))


def _combine(operation: str) -> Callable[[Call], Tensor]:
    """Add, Sub, Mul, Div: of two tensors an addition, of a tensor and a constant a scaling of its channels."""

    def layer(call: Call) -> Tensor:
        if all(isinstance(value, Tensor) for value in call.inputs):
            a, b = call.inputs
            if operation != "Add" or a.axes != b.axes:
                raise ModelFileError("of two tensors only the sum is possible (no gates, no attention)")
            return call.result(call.graph.add(call.name, a.name, b.name))
        position = next(index for index, value in enumerate(call.inputs) if isinstance(value, Tensor))
        x: Tensor = call.inputs[position]
        constant = _per_channel(call, 1 - position, x)
        one, zero = np.ones_like(constant), np.zeros_like(constant)
        if operation == "Div" and position == 1:
            raise ModelFileError("dividing by a tensor is not possible")
        scale, shift = {
            "Add": (one, constant),
            "Sub": (one, -constant) if position == 0 else (-one, constant),
            "Mul": (constant, zero),
            "Div": (one / np.where(constant == 0, np.nan, constant), zero),
        }[operation]
        if not np.isfinite(scale).all():
            raise ModelFileError("it divides by zero")
        return Tensor(call.graph.affine(call.name, x.name, scale, shift), x.axes)

    return layer


def _per_channel(call: Call, index: int, x: Tensor) -> Array:
    """A constant that broadcasts to one number per channel of `x`."""
    constant = call.array(index)
    channels = call.graph.shapes[x.name].channels
    if constant is None or constant.ndim > 4:
        raise ModelFileError("its constant must be one number, or one per channel")
    shape = dict(zip(x.axes, (1,) * (4 - constant.ndim) + constant.shape, strict=True))
    if any(size != 1 for axis, size in shape.items() if axis != "C") or shape["C"] not in (1, channels):
        raise ModelFileError(f"its constant must be one number, or one per channel, got the shape {constant.shape}")
    return np.broadcast_to(constant.reshape(-1), (channels,)).copy()


def _sum(call: Call) -> Tensor:
    x: Tensor
    x, *others = call.inputs
    for number, other in enumerate(others):
        name = call.name if number == len(others) - 1 else f"{call.name}.{number}"
        x = _combine("Add")(call._replace(name=name, inputs=[x, other]))
    return x


def _transpose(call: Call) -> Tensor:
    axes = "".join(call.x.axes[axis] for axis in call.numbers("perm", [3, 2, 1, 0]))
    if axes not in ("NCHW", "NHWC"):
        raise ModelFileError(f"it makes the axes {axes}; channels must be second or last")
    return Tensor(call.x.name, axes)


def _resize(call: Call) -> Tensor:
    shape = call.lengths(call.x)
    scales, sizes = call.array(2), call.optional(3)
    if scales is not None and scales.size:
        factors = [Fraction(float(scale)).limit_denominator(1 << 16) for scale in scales]
    elif sizes is not None:
        factors = [_factor(after, before) for after, before in zip(sizes.tolist(), shape, strict=True)]
    else:
        raise ModelFileError("it has neither scales nor sizes")
    factor = dict(zip(call.x.axes, factors, strict=True))
    scale = factor["H"]
    if factor["W"] != scale or factor["N"] != 1 or factor["C"] != 1 or scale not in (1, 2, 3, 4):
        shown = ", ".join(f"{axis} {float(value):g}" for axis, value in factor.items())
        raise ModelFileError(f"it must upsample both sides 2, 3 or 4 times, got {shown}")
    if scale == 1:
        return call.x
    mode = call.attributes.get("mode", b"nearest").decode()
    grid = call.attributes.get("coordinate_transformation_mode", b"half_pixel").decode()
    rounding = call.attributes.get("nearest_mode", b"round_prefer_floor").decode()
    kind = {
        ("linear", "half_pixel"): "bilinear",
        ("linear", "pytorch_half_pixel"): "bilinear",
        ("linear", "align_corners"): "bilinear_corners",
    }.get((mode, grid))
    if mode == "nearest" and _replicates(grid, rounding, int(scale)):
        kind = "nearest"
    if kind is None:
        way = f"{mode}, {grid}{f', {rounding}' if mode == 'nearest' else ''}"
        raise ModelFileError(
            "it must be nearest by repeating pixels, or linear with half_pixel or align_corners, got " + way
        )
    return call.result(call.graph.upsample(call.name, call.x.name, kind, int(scale)))


def _factor(after: Any, before: Any) -> Fraction:
    if isinstance(after, Length) and isinstance(before, Length):
        ratio = after.ratio(before.size)
    elif isinstance(after, Length) or isinstance(before, Length):
        ratio = None
    else:
        ratio = Fraction(int(after), int(before))
    if ratio is None:
        raise ModelFileError("its size is no multiple of its input's; export the network with fixed sizes")
    return ratio


def _replicates(grid: str, rounding: str, scale: int) -> bool:
    """Whether this kind of nearest upsampling repeats every pixel `scale` times."""
    size = 5
    rows = np.arange(size * scale)
    source = {
        "asymmetric": rows / scale,
        "half_pixel": (rows + 0.5) / scale - 0.5,
        "pytorch_half_pixel": (rows + 0.5) / scale - 0.5,
    }.get(grid)
    if source is None:
        return False
    rounded = {
        "floor": np.floor(source),
        "ceil": np.ceil(source),
        "round_prefer_floor": np.ceil(source - 0.5),
        "round_prefer_ceil": np.floor(source + 0.5),
    }[rounding]
    return np.array_equal(np.clip(rounded, 0, size - 1), rows // scale)


def _pad(call: Call) -> Tensor:
    pads = call.optional(1) if call.optional(1) is not None else call.numbers("pads", [])
    axes = call.optional(3) if call.optional(3) is not None else range(4)
    before = dict.fromkeys("NCHW", 0)
    after = dict.fromkeys("NCHW", 0)
    sides = [whole(value) for value in np.asarray(pads, object).tolist()]
    for position, axis in enumerate(np.asarray(axes).tolist()):
        letter = call.x.axes[axis]
        before[letter], after[letter] = sides[position], sides[position + len(sides) // 2]
    if before["N"] or before["C"] or after["N"] or after["C"]:
        raise ModelFileError("only height and width can be padded")
    padding = [before["H"], before["W"], after["H"], after["W"]]
    if not any(padding):
        return call.x
    mode, value = call.attributes.get("mode", b"constant").decode(), call.array(2)
    if max(padding) > 0 and (mode != "constant" or (value is not None and value.size and value.item() != 0)):
        raise ModelFileError(f"padding must be with zeros, got mode {mode}")
    return call.result(call.graph.pad(call.name, call.x.name, padding))


def _slice(call: Call) -> Tensor:
    """A cut from height or width."""
    starts, ends = (np.asarray(call.inputs[index], object).tolist() for index in (1, 2))
    given_axes, given_steps = call.optional(3), call.optional(4)
    axes = range(len(starts)) if given_axes is None else np.asarray(given_axes).tolist()
    steps = [1] * len(starts) if given_steps is None else np.asarray(given_steps).tolist()
    shape = dict(zip(call.x.axes, call.lengths(call.x), strict=True))
    cut = {letter: [0, 0] for letter in "NCHW"}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        letter = call.x.axes[axis]
        if step != 1:
            raise ModelFileError(f"its step must be 1, got {step}")
        cut[letter] = [_from_start(start, shape[letter]), _from_end(end, shape[letter])]
    if any(cut["N"]) or any(cut["C"]):
        raise ModelFileError("only height and width can be cut")
    padding = [-cut["H"][0], -cut["W"][0], -cut["H"][1], -cut["W"][1]]
    return call.result(call.graph.pad(call.name, call.x.name, padding)) if any(padding) else call.x


def _from_start(start: Any, length: Any) -> int:
    """Pixels cut off before `start`, which counts from the end where it is negative."""
    return whole(length + start if not isinstance(start, Length) and start < 0 else start)


def _from_end(end: Any, length: Any) -> int:
    """Pixels cut off behind `end`."""
    if isinstance(end, Length):
        return max(whole(length - end), 0)
    if end < 0:
        return -whole(end)
    if end >= 1 << 31:  # how exporters say: to the end
        return 0
    return max(whole(length - end), 0)


def _shape(call: Call) -> Array:
    lengths = call.lengths(call.x)
    return objects(lengths[call.attributes.get("start", 0) : call.attributes.get("end", 4)])


LAYERS: dict[str, Callable[[Call], Any]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "BatchNormalization": _batch_norm,
    "Relu": _activation("relu"),
    "LeakyRelu": _activation("leaky_relu"),
    "Sigmoid": _activation("sigmoid"),
    "Tanh": _activation("tanh"),
    "PRelu": _prelu,
    "Clip": _clip,
    "Softmax": _softmax,
    "MaxPool": _pool("max"),
    "AveragePool": _pool("average"),
    "Concat": _concat,
    **{operation: _combine(operation) for operation in ("Add", "Sub", "Mul", "Div")},
    "Sum": _sum,
    "Transpose": _transpose,
    "Resize": _resize,
    "Pad": _pad,
    "Slice": _slice,
    "Shape": _shape,
    "Identity": _same,
    "Dropout": _same,
    "Cast": _same,
}
