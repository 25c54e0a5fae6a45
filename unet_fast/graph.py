"""A network as a graph of a few kinds of node, with shapes checked as formulas in the image size.

`Graph` is the one form between a trained network and the engine file: builders (`from_spec`, the importers) append
plain nodes to it, `fuse.py` replaces groups of nodes by fused ones, `plan.py` gives the tensors memory and
`reference.py` computes any of it slowly.  `RULES` lists every kind of node with its shape rule; what each computes
stands in the op table of `docs/design.md`.  (`batch_norm` is the one kind that never reaches a file.)

Tensors are (N, height, width, channels).  Convolution weights are (out, ky, kx, in), transposed or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .sizes import Size, SizeRule, legal_sizes
from .spec import BATCH_NORM_EPSILON, LEAKY_SLOPE, UNetSpec

Array = npt.NDArray[Any]

#: The caller's image before normalisation: the one tensor that no node writes.
IMAGE = "image"
#: Activations that convolutions, `add` and `affine` apply themselves, and those that only `activation` knows.
FUSED_ACTIVATIONS = ("none", "relu", "leaky_relu")
ACTIVATIONS = ("relu", "leaky_relu", "sigmoid", "tanh", "softmax")
LINES = ("columns", "rows")
UPSAMPLINGS = ("nearest", "bilinear", "bilinear_corners")
OUTPUTS = ("sigmoid", "softmax", "identity")
LARGEST_KERNEL = 4
LARGEST_PAD = 4096
#: The `arithmetic` of an int8 op whose weights stand at the positions of Winograd's form.
WINOGRAD = "int8_winograd"


class GraphError(ValueError):
    """A node that does not fit its inputs, or that cannot be expressed.  The message begins with the node's name."""


class Shape(NamedTuple):
    """Height, width and channels of a tensor."""

    height: Size
    width: Size
    channels: int

    @property
    def sides(self) -> tuple[Size, Size]:
        return self.height, self.width

    def __str__(self) -> str:
        return f"({self.height}) x ({self.width}) x {self.channels}"


@dataclass(frozen=True)
class Node:
    """One operation: reads and writes tensors by name.

    `attributes` holds plain JSON types and `tensors` the weights, both as in the op table.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Normalisation:
    """What turns pixels in [0, 1] into the network's input; see `UNetSpec.normalisation`.

    kind "fixed": (v - mean) / std with one number per channel; kind "standardise": (v - m) / (s + epsilon).
    """

    kind: str = "fixed"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        if self.kind not in ("fixed", "standardise"):
            raise ValueError(f'normalisation must be "fixed" or "standardise", got {self.kind!r}')
        numbers = (*self.mean, *self.std, self.epsilon)
        if not all(math.isfinite(number) for number in numbers) or min(*self.std, self.epsilon) <= 0:
            raise ValueError(f"normalisation needs finite numbers, std and epsilon above 0, got {self}")

    def to_dict(self, channels: int) -> dict[str, Any]:
        """The `normalisation` of the engine file for an image of `channels`."""
        if self.kind == "standardise":
            return {"kind": "standardise", "epsilon": self.epsilon}
        return {"kind": "fixed", "mean": self._spread(self.mean, channels), "std": self._spread(self.std, channels)}

    @staticmethod
    def _spread(values: tuple[float, ...], channels: int) -> list[float]:
        if len(values) not in (1, channels):
            raise ValueError(f"normalisation needs 1 or {channels} numbers, got {len(values)}")
        return list(values) * (channels // len(values))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Normalisation:
        if values["kind"] == "standardise":
            return cls("standardise", epsilon=float(values["epsilon"]))
        return cls(values["kind"], tuple(map(float, values["mean"])), tuple(map(float, values["std"])))


def in_winograd_form(node: Node) -> bool:
    """Whether the weights of the node stand at the positions of Winograd's form."""
    return node.attributes.get("arithmetic") == WINOGRAD


def has_winograd_form(node: Node) -> bool:
    """Whether the node is a 3x3 convolution that keeps height and width, behind an upsampling or not."""
    attributes = node.attributes
    is_square = node.kind == "up_conv" or (node.kind == "conv" and attributes.get("kernel") == [3, 3])
    return is_square and attributes.get("padding") == [1, 1, 1, 1]


class Graph:
    """Nodes in the order of computation, each reading what earlier ones wrote.

    channels        1..4 channels of the image.
    normalisation   applied by the `normalise` node (or the `stem` that it becomes).
    tile            side in pixels of the images that the network was trained on.
    spec            the `UNetSpec` it was built from, if any; only carried along.

    The builder methods take and return names of tensors; the tensor that a node writes has the node's name.
    """

    def __init__(
        self,
        channels: int,
        normalisation: Normalisation | None = None,
        *,
        tile: int = 256,
        spec: UNetSpec | None = None,
    ) -> None:
        if not 1 <= channels <= 4:
            raise GraphError(f"image: 1 to 4 channels are possible, got {channels}")
        self.channels = channels
        self.normalisation = normalisation or Normalisation()
        self.normalisation.to_dict(channels)  # checks the number of channels
        self.tile = tile
        self.spec = spec
        self.output = ""
        self.nodes: list[Node] = []
        self.shapes: dict[str, Shape] = {IMAGE: Shape(Size(), Size(), channels)}

    # -- building ----------------------------------------------------------------------------------------------------

    def append(self, node: Node) -> Node:
        """Adds `node` after checking it against its inputs; `GraphError` names it where it does not fit."""
        if node.kind not in RULES:
            raise GraphError(f"{node.name}: no op {node.kind!r}; there are {', '.join(RULES)}")
        if any(node.name == other.name for other in self.nodes):
            raise GraphError(f"{node.name}: another node has this name")
        if self.nodes and not self.nodes[-1].outputs:
            raise GraphError(f"{node.name}: nothing may follow the output")
        for tensor in node.inputs:
            if tensor not in self.shapes:
                raise GraphError(f"{node.name}: reads {tensor!r}, which no earlier node writes")
        for tensor in node.outputs:
            if tensor in self.shapes:
                raise GraphError(f"{node.name}: writes {tensor!r}, which exists already")
        if in_winograd_form(node):
            _require(node, has_winograd_form(node), "has no Winograd form")
        shapes = RULES[node.kind](node, *(self.shapes[tensor] for tensor in node.inputs))
        if len(shapes) != len(node.outputs):
            raise GraphError(f"{node.name}: {node.kind} has {len(shapes)} outputs, got {len(node.outputs)}")
        self.nodes.append(node)
        self.shapes.update(zip(node.outputs, shapes, strict=True))
        return node

    def _plain(self, kind: str, name: str, inputs: Sequence[str], attributes: dict[str, Any], **tensors: Array) -> str:
        tensors = {key: np.asarray(value, dtype=np.float64) for key, value in tensors.items()}
        self.append(Node(kind, name, tuple(inputs), (name,), attributes, tensors))
        return name

    def normalise(self, name: str = "normalised") -> str:
        """The image as the network's input; the first node of every network."""
        return self._plain("normalise", name, [IMAGE], {})

    def conv(
        self, name: str, x: str, weight: Array, bias: Array | None = None, padding: Sequence[int] = (0,) * 4
    ) -> str:
        """Convolution with stride 1.  weight (out, ky, kx, in), bias (out), padding [top, left, bottom, right]."""
        if bias is None:
            bias = np.zeros(weight.shape[0])
        attributes = {"kernel": list(weight.shape[1:3]), "padding": list(padding), "activation": "none"}
        return self._plain("conv", name, [x], attributes, weight=weight, bias=bias)

    def conv_transpose(
        self,
        name: str,
        x: str,
        weight: Array,
        bias: Array | None = None,
        stride: Sequence[int] = (2, 2),
        padding: Sequence[int] = (0,) * 4,
    ) -> str:
        """Transposed convolution.  weight (out, ky, kx, in); `padding` is cropped off the full result."""
        if bias is None:
            bias = np.zeros(weight.shape[0])
        attributes = {
            "kernel": list(weight.shape[1:3]),
            "stride": list(stride),
            "padding": list(padding),
            "activation": "none",
        }
        return self._plain("conv_transpose", name, [x], attributes, weight=weight, bias=bias)

    def batch_norm(
        self,
        name: str,
        x: str,
        weight: Array,
        bias: Array,
        running_mean: Array,
        running_var: Array,
        epsilon: float = BATCH_NORM_EPSILON,
    ) -> str:
        """Batch norm as at inference: (x - running_mean) / sqrt(running_var + epsilon) * weight + bias, all (C)."""
        return self._plain(
            "batch_norm",
            name,
            [x],
            {"epsilon": float(epsilon)},
            weight=weight,
            bias=bias,
            running_mean=running_mean,
            running_var=running_var,
        )

    def affine(self, name: str, x: str, scale: Array, shift: Array) -> str:
        """x * scale + shift, one number per channel each."""
        return self._plain("affine", name, [x], {"activation": "none"}, scale=scale, shift=shift)

    def l2_normalise(self, name: str, x: str, mode: str) -> str:
        """x over the Euclidean norm of its column or row (one of `LINES`), of each channel by itself."""
        return self._plain("l2_normalise", name, [x], {"mode": mode})

    def activation(self, name: str, x: str, activation: str, slope: float = LEAKY_SLOPE) -> str:
        """One of `ACTIVATIONS`; softmax goes over the channels.  `slope` is for leaky_relu."""
        attributes: dict[str, Any] = {"activation": activation}
        if activation == "leaky_relu":
            attributes["slope"] = float(slope)
        return self._plain("activation", name, [x], attributes)

    def pool(self, name: str, x: str, mode: str = "max", kernel: Sequence[int] = (2, 2)) -> str:
        """Pooling with stride = kernel; `mode` is "max" or "average"."""
        return self._plain("pool", name, [x], {"mode": mode, "kernel": list(kernel)})

    def upsample(self, name: str, x: str, mode: str = "nearest", scale: int = 2) -> str:
        """One of `UPSAMPLINGS`, by a whole `scale` along both axes."""
        return self._plain("upsample", name, [x], {"mode": mode, "scale": scale})

    def pad(self, name: str, x: str, padding: Sequence[int]) -> str:
        """Zero padding [top, left, bottom, right]; negative numbers crop."""
        return self._plain("pad", name, [x], {"padding": list(padding)})

    def concat(self, name: str, *inputs: str) -> str:
        """The channels of two or more tensors one after the other."""
        return self._plain("concat", name, inputs, {})

    def add(self, name: str, a: str, b: str) -> str:
        """a + b, of one shape."""
        return self._plain("add", name, [a, b], {"activation": "none"})

    def finish(self, x: str, output: str, name: str = "output") -> Graph:
        """Makes `x` the logits, turned into the result by `output`, one of `OUTPUTS`.  Returns the graph, checked."""
        if output not in OUTPUTS:
            raise GraphError(f"{name}: the output must be one of {', '.join(OUTPUTS)}, got {output!r}")
        self.output = output
        self.append(Node("output", name, (x,), ()))
        _ = self.margin, self.size_rule  # these raise where the resolution is not the image's, or where no size fits
        return self

    def with_nodes(self, nodes: Iterable[Node]) -> Graph:
        """The same network with other nodes, all checked again."""
        graph = Graph(self.channels, self.normalisation, tile=self.tile, spec=self.spec)
        graph.output = self.output
        for node in nodes:
            graph.append(node)
        return graph

    # -- what follows from it ----------------------------------------------------------------------------------------

    def readers(self, tensor: str) -> list[Node]:
        """The nodes that read `tensor`, one entry for each time that they do."""
        return [node for node in self.nodes for read in node.inputs if read == tensor]

    def writer(self, tensor: str) -> Node | None:
        """The node that writes `tensor`; None for the image."""
        return next((node for node in self.nodes if tensor in node.outputs), None)

    @property
    def result(self) -> Shape:
        """Shape of the logits."""
        last = self.nodes[-1]
        if last.outputs:
            raise GraphError(f"{last.name}: the graph has no output yet")
        if last.kind == "output":
            return self.shapes[last.inputs[0]]
        height, width = _convolved(last, self.shapes[last.inputs[0]])
        return Shape(height, width, len(last.tensors["head_bias"]))

    @property
    def size_rule(self) -> SizeRule:
        """The legal heights and widths of the image, one rule for both axes."""
        sizes = [size for shape in [*self.shapes.values(), self.result] for size in shape.sides]
        for node in self.nodes:
            if node.kind == "pad":  # what is cropped must leave something, whatever is padded elsewhere
                cut = [min(side, 0) for side in node.attributes["padding"]]
                height, width = self.shapes[node.inputs[0]].sides
                sizes += [height.plus(cut[0] + cut[2]), width.plus(cut[1] + cut[3])]
        return legal_sizes(sizes)

    @property
    def margin(self) -> int:
        """Pixels that unpadded convolutions take off each side of the output."""
        result = self.result
        loss = Size().minus(result.height)
        if result.height != result.width or loss is None or loss < 0 or loss % 2:
            raise GraphError(
                f"{self.nodes[-1].name}: the output is ({result.height}) x ({result.width}) for an image of n x n; "
                "it must be as large as the image, or smaller by the same even number of pixels on both axes"
            )
        return loss // 2


# -- shapes ----------------------------------------------------------------------------------------------------------


def _require(node: Node, condition: bool, message: str) -> None:
    if not condition:
        raise GraphError(f"{node.name} ({node.kind}): {message}")


def _whole_numbers(node: Node, attribute: str, count: int, least: int, most: int) -> list[int]:
    """A list attribute, checked."""
    values = node.attributes.get(attribute)
    _require(
        node,
        isinstance(values, list)
        and len(values) == count
        and all(isinstance(value, int) and not isinstance(value, bool) and least <= value <= most for value in values),
        f"{attribute} must be {count} whole numbers from {least} to {most}, got {values!r}",
    )
    return list(values)  # type: ignore[arg-type]


def _tensor(node: Node, name: str, *shape: int | None) -> tuple[int, ...]:
    """The shape of a tensor of the node, checked against `shape` where that is not None."""
    _require(node, name in node.tensors, f"has no tensor {name!r}")
    given = node.tensors[name].shape
    fits = len(given) == len(shape) and all(want in (None, have) for want, have in zip(shape, given, strict=True))
    wanted = ", ".join("any" if size is None else str(size) for size in shape)
    _require(node, fits, f"{name} must have the shape ({wanted}), got {given}")
    return given


def _activation(node: Node, choices: Sequence[str]) -> None:
    activation = node.attributes.get("activation")
    _require(node, activation in choices, f"activation must be one of {', '.join(choices)}, got {activation!r}")
    if activation == "leaky_relu":
        slope = node.attributes.get("slope")
        _require(
            node, isinstance(slope, float) and 0 <= slope <= 1, f"slope must be a number from 0 to 1, got {slope!r}"
        )


def _inputs(node: Node, shapes: Sequence[Shape], count: int) -> None:
    _require(node, len(shapes) == count, f"must have {count} inputs, got {len(shapes)}")


def _convolved(node: Node, x: Shape) -> tuple[Size, Size]:
    """Height and width behind the stride-1 convolution that the attributes describe."""
    kernel = _whole_numbers(node, "kernel", 2, 1, LARGEST_KERNEL)
    top, left, bottom, right = _whole_numbers(node, "padding", 4, 0, LARGEST_KERNEL - 1)
    fits = max(top, bottom) < kernel[0] and max(left, right) < kernel[1]
    _require(node, fits, f"padding must be smaller than the kernel {kernel}, got {node.attributes['padding']}")
    return x.height.plus(top + bottom - kernel[0] + 1), x.width.plus(left + right - kernel[1] + 1)


def _conv_rule(node: Node, x: Shape) -> list[Shape]:
    _activation(node, FUSED_ACTIVATIONS)
    height, width = _convolved(node, x)
    taps = (4, 4) if in_winograd_form(node) else node.attributes["kernel"]
    outputs, *_ = _tensor(node, "weight", None, *taps, x.channels)
    _tensor(node, "bias", outputs)
    y = Shape(height, width, outputs)
    return [y, Shape(height.over(2), width.over(2), outputs)][: max(1, len(node.outputs))]


def _image_conv_rule(node: Node, x: Shape) -> list[Shape]:
    _require(node, node.inputs == (IMAGE,), "reads the image and nothing else")
    return _conv_rule(node, x)


def _head_rule(node: Node, x: Shape) -> list[Shape]:
    y, *_ = _conv_rule(node, x)
    classes, _ = _tensor(node, "head_weight", None, y.channels)
    _tensor(node, "head_bias", classes)
    return []


def _normalise_rule(node: Node, x: Shape) -> list[Shape]:
    _require(node, node.inputs == (IMAGE,), "reads the image and nothing else")
    return [x]


def _conv_transpose_rule(node: Node, x: Shape) -> list[Shape]:
    _activation(node, FUSED_ACTIVATIONS)
    kernel = _whole_numbers(node, "kernel", 2, 1, LARGEST_KERNEL)
    stride = _whole_numbers(node, "stride", 2, 1, 4)
    top, left, bottom, right = _whole_numbers(node, "padding", 4, 0, LARGEST_KERNEL - 1)
    fits = max(top, bottom) < kernel[0] and max(left, right) < kernel[1]
    _require(node, fits, f"padding must be smaller than the kernel {kernel}, got {node.attributes['padding']}")
    outputs, *_ = _tensor(node, "weight", None, *kernel, x.channels)
    _tensor(node, "bias", outputs)
    height = x.height.plus(-1).times(stride[0]).plus(kernel[0] - top - bottom)
    width = x.width.plus(-1).times(stride[1]).plus(kernel[1] - left - right)
    return [Shape(height, width, outputs)]


def _batch_norm_rule(node: Node, x: Shape) -> list[Shape]:
    for name in ("weight", "bias", "running_mean", "running_var"):
        _tensor(node, name, x.channels)
    smallest = float(np.min(node.tensors["running_var"])) + node.attributes["epsilon"]
    _require(node, smallest > 0, f"running_var + epsilon must be above 0, got {smallest}")
    return [x]


def _affine_rule(node: Node, x: Shape) -> list[Shape]:
    _activation(node, FUSED_ACTIVATIONS)
    _tensor(node, "scale", x.channels)
    _tensor(node, "shift", x.channels)
    return [x]


def _l2_normalise_rule(node: Node, x: Shape) -> list[Shape]:
    mode = node.attributes.get("mode")
    _require(node, mode in LINES, f"mode must be columns or rows, got {mode!r}")
    return [x]


def _activation_rule(node: Node, x: Shape) -> list[Shape]:
    _activation(node, ACTIVATIONS)
    return [x]


def _pool_rule(node: Node, x: Shape) -> list[Shape]:
    mode = node.attributes.get("mode")
    _require(node, mode in ("max", "average"), f"mode must be max or average, got {mode!r}")
    kernel = _whole_numbers(node, "kernel", 2, 1, 4)
    return [Shape(x.height.over(kernel[0]), x.width.over(kernel[1]), x.channels)]


def _upsample_rule(node: Node, x: Shape) -> list[Shape]:
    mode, scale = node.attributes.get("mode"), node.attributes.get("scale")
    _require(node, mode in UPSAMPLINGS, f"mode must be one of {', '.join(UPSAMPLINGS)}, got {mode!r}")
    _require(node, scale in (2, 3, 4), f"scale must be 2, 3 or 4, got {scale!r}")
    assert isinstance(scale, int)
    return [Shape(x.height.times(scale), x.width.times(scale), x.channels)]


def _pad_rule(node: Node, x: Shape) -> list[Shape]:
    top, left, bottom, right = _whole_numbers(node, "padding", 4, -LARGEST_PAD, LARGEST_PAD)
    return [Shape(x.height.plus(top + bottom), x.width.plus(left + right), x.channels)]


def _concat_rule(node: Node, *shapes: Shape) -> list[Shape]:
    _require(node, len(shapes) >= 2, f"must have two or more inputs, got {len(shapes)}")
    same = all(shape.sides == shapes[0].sides for shape in shapes)
    _require(node, same, f"inputs differ in height or width: {' and '.join(map(str, shapes))}")
    return [Shape(shapes[0].height, shapes[0].width, sum(shape.channels for shape in shapes))]


def _add_rule(node: Node, *shapes: Shape) -> list[Shape]:
    _inputs(node, shapes, 2)
    _activation(node, FUSED_ACTIVATIONS)
    _require(node, shapes[0] == shapes[1], f"inputs differ in shape: {shapes[0]} and {shapes[1]}")
    return [shapes[0]]


def _crop_fits(node: Node, skip: Shape, height: Size, width: Size) -> None:
    """`skip`, cropped at top and left by the attribute, covers height x width."""
    crop = _whole_numbers(node, "crop", 2, 0, LARGEST_PAD)
    spare = (skip.height.minus(height), skip.width.minus(width))
    fits = all(have is not None and have >= cut for have, cut in zip(spare, crop, strict=True))
    _require(node, fits, f"skip {skip} cropped by {crop} does not cover ({height}) x ({width})")
    padded = any(node.attributes["padding"])
    _require(node, not padded or (crop == [0, 0] and spare == (0, 0)), "cropping and zero padding exclude each other")


def _up_conv_rule(node: Node, *shapes: Shape) -> list[Shape]:
    _inputs(node, shapes, 2)
    low, skip = shapes
    _activation(node, FUSED_ACTIVATIONS)
    padding = _whole_numbers(node, "padding", 4, 0, 1)
    _require(node, len(set(padding)) == 1, f"padding must be the same on all sides, got {padding}")
    _crop_fits(node, skip, low.height.times(2), low.width.times(2))
    more = 1 if in_winograd_form(node) else 0  # positions than taps, along each axis
    outputs, *_ = _tensor(node, "weight_skip", None, 3 + more, 3 + more, skip.channels)
    _tensor(node, "weight_up", 2, 2, outputs, 2 + more, 2 + more, low.channels)
    _tensor(node, "bias", 3, 3, outputs)
    taken = 2 * padding[0] - 2
    return [Shape(low.height.times(2).plus(taken), low.width.times(2).plus(taken), outputs)]


def _concat_conv_rule(node: Node, *shapes: Shape) -> list[Shape]:
    _inputs(node, shapes, 2)
    a, b = shapes
    _activation(node, FUSED_ACTIVATIONS)
    upsample = node.attributes.get("upsample")
    choices = ("none", *UPSAMPLINGS)
    _require(node, upsample in choices, f"upsample must be one of {', '.join(choices)}, got {upsample!r}")
    up = a if upsample == "none" else Shape(a.height.times(2), a.width.times(2), a.channels)
    height, width = _convolved(node, up)
    _crop_fits(node, b, up.height, up.width)
    outputs, *_ = _tensor(node, "weight_a", None, *node.attributes["kernel"], a.channels)
    _tensor(node, "weight_b", outputs, *node.attributes["kernel"], b.channels)
    _tensor(node, "bias", outputs)
    return [Shape(height, width, outputs)]


def _output_rule(node: Node, x: Shape) -> list[Shape]:
    return []


def _same_shape_rule(node: Node, x: Shape) -> list[Shape]:
    return [x]


def _one_input(rule: Callable[[Node, Shape], list[Shape]]) -> Callable[..., list[Shape]]:
    def checked(node: Node, *shapes: Shape) -> list[Shape]:
        _inputs(node, shapes, 1)
        return rule(node, shapes[0])

    return checked


#: Every kind of node, with the rule that checks a node and gives the shapes of its outputs from those of its inputs.
RULES: dict[str, Callable[..., list[Shape]]] = {
    "stem": _one_input(_image_conv_rule),
    "conv": _one_input(_conv_rule),
    "up_conv": _up_conv_rule,
    "concat_conv": _concat_conv_rule,
    "head": _one_input(_head_rule),
    "output": _one_input(_output_rule),
    "normalise": _one_input(_normalise_rule),
    "conv_transpose": _one_input(_conv_transpose_rule),
    "batch_norm": _one_input(_batch_norm_rule),
    "pool": _one_input(_pool_rule),
    "upsample": _one_input(_upsample_rule),
    "pad": _one_input(_pad_rule),
    "concat": _concat_rule,
    "add": _add_rule,
    "activation": _one_input(_activation_rule),
    "affine": _one_input(_affine_rule),
    "l2_normalise": _one_input(_l2_normalise_rule),
    "quantise": _one_input(_same_shape_rule),
    "dequantise": _one_input(_same_shape_rule),
}

# -- from a spec -----------------------------------------------------------------------------------------------------


class _Weights:
    """Takes named arrays out of a state dict, checking each; what is left over at the end is an error."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        self.left = {name: value for name, value in weights.items() if not name.endswith(".num_batches_tracked")}

    def take(self, name: str, *shape: int) -> Array:
        if name not in self.left:
            raise ValueError(f"weights lack {name!r} {shape}; left over are {self._names()}")
        value = np.asarray(self.left.pop(name))
        if value.shape != shape:
            raise ValueError(f"weight {name!r} must have the shape {shape}, got {value.shape}")
        return value

    def finish(self) -> None:
        if self.left:
            raise ValueError(f"weights that the spec has no place for: {self._names()}")

    def _names(self) -> str:
        names = sorted(self.left)
        return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "none"


def canonical(weight: Array) -> Array:
    """PyTorch's convolution weight (out, in, ky, kx) as (out, ky, kx, in)."""
    return weight.transpose(0, 2, 3, 1)


def canonical_transposed(weight: Array) -> Array:
    """PyTorch's transposed convolution weight (in, out, ky, kx) as (out, ky, kx, in)."""
    return weight.transpose(1, 2, 3, 0)


def from_spec(spec: UNetSpec, weights: Mapping[str, Array]) -> Graph:
    """The graph of `train.model.UNet(spec)`, with `weights` as in its `state_dict` (names in `spec.py`).

    A missing, left-over or wrongly shaped weight is a `ValueError` that names it.
    """
    source = _Weights(weights)
    graph = Graph(spec.in_channels, Normalisation(spec.normalisation, spec.mean, spec.std), tile=spec.tile, spec=spec)

    def conv(
        name: str, x: str, inputs: int, outputs: int, kernel: int, padding: Sequence[int], bias: bool = True
    ) -> str:
        weight = canonical(source.take(f"{name}.weight", outputs, inputs, kernel, kernel))
        return graph.conv(name, x, weight, source.take(f"{name}.bias", outputs) if bias else None, padding)

    def stage(name: str, x: str, inputs: int, outputs: int) -> str:
        padding = (1, 1, 1, 1) if spec.padding == "same" else (0, 0, 0, 0)
        for index in range(spec.convs_per_stage):
            x = conv(f"{name}.conv{index}", x, inputs, outputs, 3, padding, bias=not spec.batch_norm)
            if spec.batch_norm:
                norm = f"{name}.norm{index}"
                fields = ("weight", "bias", "running_mean", "running_var")
                weight, bias, mean, variance = (source.take(f"{norm}.{field}", outputs) for field in fields)
                x = graph.batch_norm(norm, x, weight, bias, mean, variance)
            x = graph.activation(f"{name}.relu{index}", x, spec.activation)
            inputs = outputs
        return x

    def upsample(name: str, x: str, inputs: int, outputs: int) -> tuple[str, int]:
        if spec.upsampling == "bilinear":
            return graph.upsample(name, x, "bilinear_corners" if spec.align_corners else "bilinear"), inputs
        if spec.upsampling == "nearest":
            return graph.upsample(name, x, "nearest"), inputs
        if spec.upsampling == "transpose":
            weight = canonical_transposed(source.take(f"{name}.weight", inputs, outputs, 2, 2))
            x = graph.conv_transpose(name, x, weight, source.take(f"{name}.bias", outputs))
        else:
            x = conv(name, graph.upsample(f"{name}.nearest", x), inputs, outputs, 2, (0, 0, 1, 1))
        if spec.up_activation != "none":
            x = graph.activation(f"{name}.{spec.up_activation}", x, spec.up_activation)
        return x, outputs

    def crop_centre(name: str, skip: str, like: str) -> str:
        """`skip` cut to the size of `like`; an odd surplus goes at the bottom or right."""
        pairs = zip(graph.shapes[skip].sides, graph.shapes[like].sides, strict=True)
        height, width = (here.minus(there) or 0 for here, there in pairs)
        if height == width == 0:
            return skip
        return graph.pad(name, skip, [-(height // 2), -(width // 2), height // 2 - height, width // 2 - width])

    x, channels, skips = graph.normalise(), spec.in_channels, []
    for level in range(spec.depth):
        x = stage(f"encoder{level}", x, channels, spec.width(level))
        channels = spec.width(level)
        skips.append(x)
        x = graph.pool(f"pool{level}", x)
    x = stage("bottleneck", x, channels, spec.width(spec.depth))
    channels = spec.width(spec.depth)
    for level in reversed(range(spec.depth)):
        up, channels = upsample(f"up{level}", x, channels, spec.width(level))
        skip = crop_centre(f"crop{level}", skips[level], up)
        x = graph.concat(f"concat{level}", *((up, skip) if spec.concat == "up_first" else (skip, up)))
        x = stage(f"decoder{level}", x, channels + spec.width(level), spec.width(level))
        channels = spec.width(level)
    x = conv("head", x, channels, spec.classes, 1, (0, 0, 0, 0))
    source.finish()
    return graph.finish(x, spec.output)
