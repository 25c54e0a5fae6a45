"""Every op of the table in `docs/design.md`, slowly and plainly in NumPy: the arbiter without PyTorch.

    probability(graph, pixels)      pixels (N, H, W, C) in [0, 1] -> (N, h, w, K)

It runs a graph before fusing as well as after, in float64 unless told otherwise.  `storage="fp16"` (or "bf16")
rounds weights and every tensor as a device that stores them so would, to foretell its accuracy.  Of a quantised graph,
uint8 tensors are whole numbers in the same dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .graph import IMAGE, Array, Graph, GraphError, Node, Normalisation, in_winograd_form


def to_unit(image: Array) -> Array:
    """An 8-bit image over 255, a 16-bit one over 65535, a float one as it is; float64."""
    scale = {"uint8": 255.0, "uint16": 65535.0}.get(image.dtype.name, 1.0)
    return np.asarray(image, dtype=np.float64) / scale


def probability(graph: Graph, pixels: Array, **options: Any) -> Array:
    """The result for `pixels` (N, H, W, C) in [0, 1]: (N, h, w, K), sigmoid or softmax over K or the value itself."""
    return result(graph, logits(graph, pixels, **options))


def result(graph: Graph, values: Array) -> Array:
    """The output function of `graph` on logits (N, h, w, K)."""
    if graph.output == "sigmoid":
        return _sigmoid(values)
    return _softmax(values) if graph.output == "softmax" else values


def logits(graph: Graph, pixels: Array, **options: Any) -> Array:
    """What the output function is applied to: (N, h, w, K)."""
    return tensors(graph, pixels, **options)["logits"]


def tensors(graph: Graph, pixels: Array, dtype: type = np.float64, storage: str = "float32") -> dict[str, Array]:
    """Every tensor of the graph by name, and "logits".  `GraphError` for an image of the wrong shape or size."""
    if pixels.ndim != 4 or pixels.shape[3] != graph.channels:
        raise GraphError(f"image: must be (N, H, W, {graph.channels}), got {pixels.shape}")
    rule = graph.size_rule
    if not (rule.allows(pixels.shape[1]) and rule.allows(pixels.shape[2])):
        raise GraphError(f"image: height and width must be n with {rule}, got {pixels.shape[1]} x {pixels.shape[2]}")
    stored = _STORAGES[storage]
    values: dict[str, Array] = {IMAGE: np.asarray(pixels, dtype=dtype)}
    in_bytes = {name: node for node in graph.nodes if "output_scale" in node.attributes for name in node.outputs}
    with np.errstate(over="ignore", invalid="ignore"):  # an overflow shows in the result as inf or NaN
        for node in graph.nodes:
            inputs = [values[name] for name in node.inputs]
            weights: dict[str, Array] = {}
            for name, array in node.tensors.items():
                # Devices keep biases, scales and shifts in float32 whatever the storage.
                weights[name] = (stored(array) if "weight" in name else array).astype(dtype)
            if node.kind in ("stem", "normalise"):
                inputs = [stored(normalised(inputs[0], graph.normalisation))]
            if node.kind == "dequantise":
                outputs = [inputs[0] * in_bytes[node.inputs[0]].attributes["output_scale"]]
            else:
                outputs = _OPS[node.kind](node, weights, *inputs)
            if not node.outputs:
                values["logits"] = outputs[0]
            for name, output in zip(node.outputs, outputs, strict=False):
                values[name] = output if name in in_bytes else stored(output)
    return values


def _round_fp16(x: Array) -> Array:
    return x.astype(np.float16).astype(x.dtype)


def _round_bf16(x: Array) -> Array:
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32).astype(x.dtype)


#: What storing an array in a precision does to its values.
_STORAGES: dict[str, Callable[[Array], Array]] = {"float32": lambda x: x, "bf16": _round_bf16, "fp16": _round_fp16}


def normalised(pixels: Array, rule: Normalisation) -> Array:
    """`pixels` (N, H, W, C) in [0, 1] as the network's input."""
    if rule.kind == "fixed":
        return (pixels - np.asarray(rule.mean, pixels.dtype)) / np.asarray(rule.std, pixels.dtype)
    mean = pixels.mean(axis=(1, 2, 3), keepdims=True)
    deviation = pixels.std(axis=(1, 2, 3), keepdims=True)
    return (pixels - mean) / (deviation + rule.epsilon)


# -- pieces ----------------------------------------------------------------------------------------------------------


def _sigmoid(x: Array) -> Array:
    exponential = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, exponential) / (1 + exponential)


def _softmax(x: Array) -> Array:
    exponential = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponential / exponential.sum(axis=-1, keepdims=True)


def activate(x: Array, activation: str, slope: float = 0.0) -> Array:
    if activation == "relu":
        return np.maximum(x, 0)
    if activation == "leaky_relu":
        return np.where(x >= 0, x, slope * x)
    if activation == "sigmoid":
        return _sigmoid(x)
    if activation == "tanh":
        return np.tanh(x)
    return _softmax(x) if activation == "softmax" else x


def _act(node: Node, x: Array, scale: Array | None = None) -> Array:
    """What the node stores of its sums `x`; of an int8 node, one step in channel c of a sum is worth scale[c]."""
    if scale is not None:
        x = x.astype(np.float32) * _factor(node, scale)
    elif "output_scale" in node.attributes:
        x = x.astype(np.float32) * _factor(node, np.ones(1))
    if "output_scale" in node.attributes:
        return np.clip(np.rint(x), 0, 255).astype(np.float64)
    return activate(x, node.attributes["activation"], node.attributes.get("slope", 0.0))


def _factor(node: Node, scale: Array) -> Array:
    """Float32 as in the runtime: what makes a float or a byte of a sum."""
    factor: Array = scale.astype(np.float32) / np.float32(node.attributes.get("output_scale", 1.0))
    return factor


def padded(x: Array, padding: list[int]) -> Array:
    """Zeros around (N, h, w, C), [top, left, bottom, right]; negative numbers crop."""
    top, left, bottom, right = padding
    x = np.pad(x, ((0, 0), (max(top, 0), max(bottom, 0)), (max(left, 0), max(right, 0)), (0, 0)))
    height, width = x.shape[1:3]
    return x[:, max(-top, 0) : height - max(-bottom, 0), max(-left, 0) : width - max(-right, 0)]


def correlate(x: Array, weight: Array, padding: list[int]) -> Array:
    """The convolution alone: x (N, h, w, C), weight (O, ky, kx, C) -> (N, h', w', O), tap by tap."""
    x = padded(x, padding)
    outputs, rows, columns, _ = weight.shape
    height, width = x.shape[1] - rows + 1, x.shape[2] - columns + 1
    y = np.zeros((x.shape[0], height, width, outputs), x.dtype)
    for dy in range(rows):
        for dx in range(columns):
            y += x[:, dy : dy + height, dx : dx + width] @ weight[:, dy, dx].T
    return y


#: Winograd's F(2x2, 3x3) and its like for a 2x2 convolution: [a, i] says how often output a of a tile takes position i.
_FROM_POSITIONS = np.array([[1, 2, 1, 0], [0, 2, -1, -1]])
_FROM_LOW_POSITIONS = np.array([[1, 1, 0], [0, 1, 1]])


def winograd(x: Array, weight: Array) -> Array:
    """The sums of a 3x3 convolution of bytes with padding 1 in Winograd's form, as `docs/design.md` defines them.

    x (N, h, w, C), weight (O, 4, 4, C) at the positions -> (N, h, w, O).
    """

    def positions(x: Array, axis: int, tiles: int, rounding: int) -> list[Array]:
        p, q, r, s = (_every_other(x, axis, first, tiles) for first in range(4))
        return [_cut(p - r), (q + r + rounding) // 2, _cut(r - q), _cut(q - s)]

    count, height, width, _ = x.shape
    rows, columns = -(-height // 2), -(-width // 2)
    y = np.zeros((count, 2 * rows, 2 * columns, len(weight)), x.dtype)
    around = padded(x, [1, 1, 1 + height % 2, 1 + width % 2])
    for i, v in enumerate(positions(around, 1, rows, 1)):
        for j, u in enumerate(positions(v, 2, columns, 0)):
            product = u @ weight[:, i, j].T
            for a, b in np.ndindex(2, 2):
                y[:, a::2, b::2] += _FROM_POSITIONS[a, i] * _FROM_POSITIONS[b, j] * product
    return y[:, :height, :width]


def winograd_up(low: Array, weight: Array) -> Array:
    """What `low` gives to the sums of an `up_conv` with padding 1 in Winograd's form, likewise.

    low (N, h, w, C), weight (2, 2, O, 3, 3, C) -> (N, 2h, 2w, O).
    """

    def positions(x: Array, axis: int, tiles: int, phase: int) -> list[Array]:
        p, q, r = (_every_other(x, axis, first, tiles) for first in range(phase, phase + 3))
        return [_cut(q - p if phase else p - q), q, _cut(r - q)]

    count, height, width, _ = low.shape
    rows, columns = -(-height // 2), -(-width // 2)
    y = np.zeros((count, 4 * rows, 4 * columns, weight.shape[2]), low.dtype)
    around = padded(low, [1, 1, 1 + height % 2, 1 + width % 2])
    for phase_y, phase_x in np.ndindex(2, 2):
        for i, v in enumerate(positions(around, 1, rows, phase_y)):
            for j, u in enumerate(positions(v, 2, columns, phase_x)):
                product = u @ weight[phase_y, phase_x, :, i, j].T
                for k, m in np.ndindex(2, 2):
                    factor = _FROM_LOW_POSITIONS[k, i] * _FROM_LOW_POSITIONS[m, j]
                    y[:, 2 * k + phase_y :: 4, 2 * m + phase_x :: 4] += factor * product
    return y[:, : 2 * height, : 2 * width]


def _every_other(x: Array, axis: int, first: int, count: int) -> Array:
    """So many rows (axis 1) or columns (axis 2) of x, every second one from `first` on."""
    return np.take(x, range(first, first + 2 * count, 2), axis)


def _cut(x: Array) -> Array:
    """As a signed byte holds it."""
    return np.clip(x, -128, 127)


def pooled(x: Array, mode: str, kernel: list[int]) -> Array:
    count, height, width, channels = x.shape
    windows = x.reshape(count, height // kernel[0], kernel[0], width // kernel[1], kernel[1], channels)
    return windows.max(axis=(2, 4)) if mode == "max" else windows.mean(axis=(2, 4))


def upsampled(x: Array, mode: str, scale: int) -> Array:
    """As `torch.nn.Upsample`, first along the rows, then along the columns."""
    for axis in (1, 2):
        size = x.shape[axis]
        rows = np.arange(size * scale)
        if mode == "nearest":
            x = np.take(x, rows // scale, axis)
            continue
        if mode == "bilinear_corners":
            source = rows * ((size - 1) / (size * scale - 1))
        else:
            source = np.maximum((rows + 0.5) / scale - 0.5, 0)
        low = np.minimum(source.astype(np.int64), size - 1)
        high = np.minimum(low + 1, size - 1)
        share = np.expand_dims(source - low, tuple(other for other in range(4) if other != axis)).astype(x.dtype)
        x = np.take(x, low, axis) * (1 - share) + np.take(x, high, axis) * share
    return x


def l2_normalised(x: Array, mode: str) -> Array:
    """(N, h, w, C) over the Euclidean norms of its "columns" or "rows"; a line of zeros stays."""
    norms = np.sqrt((x * x).sum(axis=1 if mode == "columns" else 2, keepdims=True))
    return x / np.where(norms > 0, norms, 1)


# -- ops: (node, weights, inputs...) -> outputs ----------------------------------------------------------------------


def _conv(node: Node, weights: dict[str, Array], x: Array) -> list[Array]:
    if in_winograd_form(node):
        sums = winograd(x, weights["weight"])
    else:
        sums = correlate(x, weights["weight"], node.attributes["padding"])
    y = _act(node, sums + weights["bias"], weights.get("scale"))
    return [y, pooled(y, "max", [2, 2])] if len(node.outputs) == 2 else [y]


def _head(node: Node, weights: dict[str, Array], x: Array) -> list[Array]:
    sums = correlate(x, weights["weight"], node.attributes["padding"]) + weights["bias"]
    y = _act(node, sums, weights.get("scale"))
    return [y @ weights["head_weight"].T + weights["head_bias"]]


def _concat_conv(node: Node, weights: dict[str, Array], a: Array, b: Array) -> list[Array]:
    if node.attributes["upsample"] != "none":
        a = upsampled(a, node.attributes["upsample"], 2)
    top, left = node.attributes["crop"]
    b = b[:, top : top + a.shape[1], left : left + a.shape[2]]
    weight = np.concatenate([weights["weight_a"], weights["weight_b"]], axis=3)
    y = correlate(np.concatenate([a, b], axis=3), weight, node.attributes["padding"])
    return [_act(node, y + weights["bias"], weights.get("scale"))]


def _up_conv(node: Node, weights: dict[str, Array], low: Array, skip: Array) -> list[Array]:
    if in_winograd_form(node):
        y = winograd_up(low, weights["weight_up"]) + winograd(skip, weights["weight_skip"])
    else:
        y = _up_sums(node, weights, low, skip)
    rows, columns = (_border(size, node.attributes["padding"][0]) for size in y.shape[1:3])
    return [_act(node, y + weights["bias"][rows[:, None], columns], weights.get("scale"))]


def _up_sums(node: Node, weights: dict[str, Array], low: Array, skip: Array) -> Array:
    padding = node.attributes["padding"][0]
    top, left = node.attributes["crop"]
    height, width = (2 * size + 2 * padding - 2 for size in low.shape[1:3])
    skip = skip[:, top : top + height + 2 - 2 * padding, left : left + width + 2 - 2 * padding]
    y = correlate(skip, weights["weight_skip"], [padding] * 4)
    around = padded(low, [1, 1, 1, 1])
    for phase_y in (0, 1):
        for phase_x in (0, 1):
            # The rows whose middle row y + 1 - padding has this phase, and the first row of `low` that each reads.
            rows = np.arange((phase_y + 1 - padding) % 2, height, 2)
            columns = np.arange((phase_x + 1 - padding) % 2, width, 2)
            first_rows = (rows + 1 - padding) // 2 - 1 + phase_y
            first_columns = (columns + 1 - padding) // 2 - 1 + phase_x
            for a in (0, 1):
                for b in (0, 1):
                    window = around[:, first_rows + 1 + a][:, :, first_columns + 1 + b]
                    y[:, rows[:, None], columns] += window @ weights["weight_up"][phase_y, phase_x, :, a, b].T
    return y


def _border(size: int, padding: int) -> Array:
    """Which of the three biases each row takes: 0 the first, 2 the last, 1 between them or without padding."""
    index = np.ones(size, np.int64)
    if padding:
        index[0], index[-1] = 0, 2
    return index


def _conv_transpose(node: Node, weights: dict[str, Array], x: Array) -> list[Array]:
    (stride_y, stride_x), weight = node.attributes["stride"], weights["weight"]
    count, height, width, _ = x.shape
    outputs, rows, columns, _ = weight.shape
    full = ((height - 1) * stride_y + rows, (width - 1) * stride_x + columns)
    y = np.zeros((count, *full, outputs), x.dtype)
    for dy in range(rows):
        for dx in range(columns):
            taken = (slice(dy, full[0] - rows + dy + 1, stride_y), slice(dx, full[1] - columns + dx + 1, stride_x))
            y[:, taken[0], taken[1]] += x @ weight[:, dy, dx].T
    cropped = padded(y, [-side for side in node.attributes["padding"]])
    return [_act(node, cropped + weights["bias"], weights.get("scale"))]


def _batch_norm(node: Node, weights: dict[str, Array], x: Array) -> list[Array]:
    deviation = np.sqrt(weights["running_var"] + node.attributes["epsilon"])
    return [(x - weights["running_mean"]) / deviation * weights["weight"] + weights["bias"]]


#: Stem and normalise get the normalised image.
_OPS: dict[str, Callable[..., list[Array]]] = {
    "stem": _conv,
    "conv": _conv,
    "up_conv": _up_conv,
    "concat_conv": _concat_conv,
    "head": _head,
    "output": lambda node, weights, x: [x],
    "normalise": lambda node, weights, x: [x],
    "conv_transpose": _conv_transpose,
    "batch_norm": _batch_norm,
    "pool": lambda node, weights, x: [pooled(x, node.attributes["mode"], node.attributes["kernel"])],
    "upsample": lambda node, weights, x: [upsampled(x, node.attributes["mode"], node.attributes["scale"])],
    "pad": lambda node, weights, x: [padded(x, node.attributes["padding"])],
    "concat": lambda node, weights, *inputs: [np.concatenate(inputs, axis=3)],
    "add": lambda node, weights, a, b: [_act(node, a + b)],
    "activation": lambda node, weights, x: [_act(node, x)],
    "affine": lambda node, weights, x: [_act(node, x * weights["scale"] + weights["shift"])],
    "l2_normalise": lambda node, weights, x: [l2_normalised(x, node.attributes["mode"])],
    "quantise": lambda node, weights, x: [_act(node, x)],
}
