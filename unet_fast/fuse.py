"""Rewrites of a graph into fewer, larger ops that compute the same function.

Each rewrite is a function from a graph to a graph and stands alone: its docstring says why it changes nothing, and
`tests/test_fuse.py` compares the graphs before and after it.  All arithmetic on weights is done in float64.  `fuse`
applies them in the order of `REWRITES`; what no rewrite recognises stays a plain op.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .graph import FUSED_ACTIVATIONS, IMAGE, Array, Graph, Node

#: A replacement: the nodes that go, the nodes that come, and the node in whose place they come.
Change = tuple[Sequence[Node], Sequence[Node], Node]


def fuse(graph: Graph) -> Graph:
    """The fused form of `graph`: the same function, ready for `plan.py`."""
    for rewrite in REWRITES:
        graph = rewrite(graph)
    return graph


def _everywhere(graph: Graph, find: Callable[[Graph, Node], Change | None]) -> Graph:
    """Applies the change that `find` proposes for a node, until it proposes none."""
    while True:
        change = next((change for node in graph.nodes if (change := find(graph, node))), None)
        if change is None:
            return graph
        gone, come, place = change
        nodes: list[Node] = []
        for node in graph.nodes:
            if node is place:
                nodes.extend(come)
            elif all(node is not other for other in gone):
                nodes.append(node)
        graph = graph.with_nodes(nodes)


def _only_writer(graph: Graph, tensor: str, *kinds: str) -> Node | None:
    """The node that writes `tensor`, if it is of one of `kinds`, writes nothing else, and one node reads it once."""
    writer = graph.writer(tensor)
    if writer is None or writer.kind not in kinds or len(writer.outputs) != 1 or len(graph.readers(tensor)) != 1:
        return None
    return writer


def _is_linear(node: Node) -> bool:
    return bool(node.attributes["activation"] == "none")


def remove_dead_nodes(graph: Graph) -> Graph:
    """Drops nodes whose outputs nobody reads."""

    def find(graph: Graph, node: Node) -> Change | None:
        if node.outputs and not any(graph.readers(tensor) for tensor in node.outputs):
            return [node], [], node
        return None

    return _everywhere(graph, find)


def batch_norm_to_affine(graph: Graph) -> Graph:
    """(x - m) / sqrt(v + e) * w + b  =  x * scale + shift  with scale = w / sqrt(v + e), shift = b - m * scale."""

    def find(graph: Graph, node: Node) -> Change | None:
        if node.kind != "batch_norm":
            return None
        tensors = node.tensors
        scale = tensors["weight"] / np.sqrt(tensors["running_var"] + node.attributes["epsilon"])
        shift = tensors["bias"] - tensors["running_mean"] * scale
        affine = replace(
            node, kind="affine", attributes={"activation": "none"}, tensors={"scale": scale, "shift": shift}
        )
        return [node], [affine], node

    return _everywhere(graph, find)


def fold_affine(graph: Graph) -> Graph:
    """(sum of w . x + b) * scale + shift  =  sum of (w * scale) . x + (b * scale + shift), per output channel.

    Scaling comes after the sum over the taps, so zero padding does not matter.  Needs a linear convolution before the
    affine, whose result nobody else reads.
    """

    def find(graph: Graph, node: Node) -> Change | None:
        if node.kind != "affine":
            return None
        conv = _only_writer(graph, node.inputs[0], "conv", "conv_transpose")
        if conv is None or not _is_linear(conv):
            return None
        scale, shift = node.tensors["scale"], node.tensors["shift"]
        tensors = {
            "weight": conv.tensors["weight"] * scale[:, None, None, None],
            "bias": conv.tensors["bias"] * scale + shift,
        }
        attributes = {**conv.attributes, **node.attributes}
        return [conv, node], [replace(conv, outputs=node.outputs, attributes=attributes, tensors=tensors)], node

    return _everywhere(graph, find)


def merge_padding(graph: Graph) -> Graph:
    """Zero padding before a convolution is part of the convolution's own, as long as that stays below the kernel."""

    def find(graph: Graph, node: Node) -> Change | None:
        if node.kind != "conv" or (pad := _only_writer(graph, node.inputs[0], "pad")) is None:
            return None
        padding = [
            mine + more for mine, more in zip(node.attributes["padding"], pad.attributes["padding"], strict=True)
        ]
        fits = all(total < size for total, size in zip(padding, 2 * node.attributes["kernel"], strict=True))
        if min(pad.attributes["padding"]) < 0 or not fits:
            return None
        attributes = {**node.attributes, "padding": padding}
        return [pad, node], [replace(node, inputs=pad.inputs, attributes=attributes)], node

    return _everywhere(graph, find)


def hoist_pointwise(graph: Graph) -> Graph:
    """A linear 1x1 convolution behind an upsampling is moved before it, where there are fewer pixels.

    An upsampled pixel is sum_i a_i x_i with sum_i a_i = 1 (one term for nearest; clamped edges keep the sum), so
    W (sum_i a_i x_i) + b = sum_i a_i (W x_i + b).
    """

    def find(graph: Graph, node: Node) -> Change | None:
        if node.kind != "conv" or node.attributes["kernel"] != [1, 1] or not _is_linear(node):
            return None
        upsample = _only_writer(graph, node.inputs[0], "upsample")
        if upsample is None:
            return None
        between = upsample.outputs[0]
        conv = replace(node, inputs=upsample.inputs, outputs=(between,))
        return [upsample, node], [conv, replace(upsample, inputs=(between,), outputs=node.outputs)], node

    return _everywhere(graph, find)


def absorb_activation(graph: Graph) -> Graph:
    """relu and leaky_relu are applied by the op before them; the other activations stay ops."""

    def find(graph: Graph, node: Node) -> Change | None:
        if node.kind != "activation" or node.attributes["activation"] not in FUSED_ACTIVATIONS:
            return None
        before = _only_writer(graph, node.inputs[0], "conv", "conv_transpose", "add", "affine")
        if before is None or not _is_linear(before):
            return None
        attributes = {**before.attributes, **node.attributes}
        return [before, node], [replace(before, outputs=node.outputs, attributes=attributes)], node

    return _everywhere(graph, find)


def absorb_pool(graph: Graph) -> Graph:
    """The 2x2 maximum of a convolution's result becomes its second output."""

    def find(graph: Graph, node: Node) -> Change | None:
        if node.kind != "pool" or node.attributes != {"mode": "max", "kernel": [2, 2]}:
            return None
        conv = graph.writer(node.inputs[0])
        if conv is None or conv.kind != "conv" or len(conv.outputs) != 1:
            return None
        return [conv, node], [replace(conv, outputs=(*conv.outputs, *node.outputs))], conv

    return _everywhere(graph, find)


def merge_up_convolution(graph: Graph) -> Graph:
    """Upsampling x2, concat and 3x3 convolution become one `up_conv`.

    Let up[2i + s, 2j + t] = T[s, t] low[i, j] + u be a linear 2x2 stride-2 transposed convolution (for nearest
    upsampling T[s, t] is the identity and u = 0), and W the part of the 3x3 weights that reads it.  Output row y reads
    rows Y - 1, Y, Y + 1 of up, with Y = y + 1 - padding.  Row Y - 1 + d lies in low row (Y - 1 + d) // 2 as its part
    (Y - 1 + d) % 2, so the three rows fall into two rows of low, (Y // 2) - 1 + phase + {0, 1} with phase = Y % 2:

        phase 0:  d = 0 -> tap 0, part 1    d = 1 -> tap 1, part 0    d = 2 -> tap 1, part 1
        phase 1:  d = 0 -> tap 0, part 0    d = 1 -> tap 0, part 1    d = 2 -> tap 1, part 0

    and the same along x: for each of the four phases the up branch is a 2x2 convolution of low with the weights
    sum of W[d, e] T[part(d), part(e)] over the taps that meet.  Rows outside low are zero in both forms.  The bias u
    is part of up, not of its zero padding: the first row of the output misses the taps d = 0 and the last one d = 2,
    hence nine biases.  Done only where it saves arithmetic.
    """

    def find(graph: Graph, node: Node) -> Change | None:
        padding = node.attributes.get("padding")
        if node.kind != "conv" or node.attributes["kernel"] != [3, 3] or padding not in ([0] * 4, [1] * 4):
            return None
        concat = _only_writer(graph, node.inputs[0], "concat")
        if concat is None or len(concat.inputs) != 2 or len(node.outputs) != 1:
            return None
        for position in (0, 1):
            up = _only_writer(graph, concat.inputs[position], "conv_transpose", "upsample")
            if up is None or (transposed := _doubling(graph, up)) is None:
                continue
            weight_up, weight_skip = _split(graph, concat, node.tensors["weight"], position)
            outputs, _, _, between = weight_up.shape
            low_channels = transposed[0].shape[3]
            if 4 * low_channels * outputs > 9 * between * outputs + (low_channels * between if up.tensors else 0):
                continue
            skip, crop, gone = _cropped(graph, concat.inputs[1 - position], padding)
            merged = Node(
                "up_conv",
                node.name,
                (up.inputs[0], skip),
                node.outputs,
                {"padding": padding, "crop": crop, **_activation_of(node)},
                {
                    "weight_up": _merged_weights(weight_up, transposed[0]),
                    "weight_skip": weight_skip,
                    "bias": _border_biases(node.tensors["bias"], weight_up, transposed[1], padding[0]),
                },
            )
            return [up, concat, node, *gone], [merged], node
        return None

    return _everywhere(graph, find)


def _doubling(graph: Graph, up: Node) -> tuple[Array, Array] | None:
    """T (out, 2, 2, in) and u (out) of `merge_up_convolution`, or None where `up` is not of that form."""
    if up.kind == "conv_transpose":
        attributes = up.attributes
        doubles = attributes["kernel"] == attributes["stride"] == [2, 2] and not any(attributes["padding"])
        return (up.tensors["weight"], up.tensors["bias"]) if doubles and _is_linear(up) else None
    if up.attributes != {"mode": "nearest", "scale": 2}:
        return None
    channels = graph.shapes[up.inputs[0]].channels
    return np.broadcast_to(np.eye(channels)[:, None, None, :], (channels, 2, 2, channels)), np.zeros(channels)


def _split(graph: Graph, concat: Node, weight: Array, position: int) -> tuple[Array, Array]:
    """The weights (out, ky, kx, in) that read the input at `position` (0 or 1) of the concat, then the other's."""
    first = graph.shapes[concat.inputs[0]].channels
    halves = weight[..., :first], weight[..., first:]
    return halves[position], halves[1 - position]


def _cropped(graph: Graph, skip: str, padding: list[int]) -> tuple[str, list[int], list[Node]]:
    """The tensor that `skip` is cut from, [top, left] of the cut, and the `pad` node that goes.

    Zero padding around a cropped tensor is not what lies around the cut, so then the crop stays a node of its own.
    """
    pad = _only_writer(graph, skip, "pad")
    if pad is None or any(padding) or max(pad.attributes["padding"]) > 0:
        return skip, [0, 0], []
    top, left = pad.attributes["padding"][:2]
    return pad.inputs[0], [-top, -left], [pad]


def _activation_of(node: Node) -> dict[str, Any]:
    return {key: node.attributes[key] for key in ("activation", "slope") if key in node.attributes}


def _tap_and_part(phase: int, d: int) -> tuple[int, int]:
    """Row of `low` (0 or 1) and part of it (0 or 1) in which tap `d` of the 3x3 window lies; see the table above."""
    row = phase - 1 + d  # counted from the first row of `low` that phase 0 has in the middle
    return row // 2 + 1 - phase, row % 2


def _merged_weights(weight: Array, transposed: Array) -> Array:
    """weight (O, 3, 3, Cu), transposed (Cu, 2, 2, Clow) -> (2, 2, O, 2, 2, Clow): [phase_y, phase_x, o, a, b, c]."""
    merged = np.zeros((2, 2, weight.shape[0], 2, 2, transposed.shape[3]))
    for phase_y, phase_x, dy, dx in np.ndindex(2, 2, 3, 3):
        a, part_y = _tap_and_part(phase_y, dy)
        b, part_x = _tap_and_part(phase_x, dx)
        merged[phase_y, phase_x, :, a, b] += weight[:, dy, dx] @ transposed[:, part_y, part_x]
    return merged


def _border_biases(bias: Array, weight: Array, up_bias: Array, padding: int) -> Array:
    """bias (O), weight (O, 3, 3, Cu), up_bias (Cu) -> (3, 3, O): first, inner and last row by column."""
    taps = {0: (1, 2), 1: (0, 1, 2), 2: (0, 1)} if padding else dict.fromkeys(range(3), (0, 1, 2))
    carried = weight @ up_bias  # (O, 3, 3)
    biases = np.empty((3, 3, len(bias)))
    for row, column in np.ndindex(3, 3):
        biases[row, column] = bias + carried[:, taps[row]][:, :, taps[column]].sum(axis=(1, 2))
    return biases


def merge_concat_convolution(graph: Graph) -> Graph:
    """concat and convolution become one op that reads both tensors, each with its own part of the weights.

    An upsampling x2 of one of the two is done while reading; the crop of the other too, where nothing is padded.
    """

    def find(graph: Graph, node: Node) -> Change | None:
        if node.kind != "conv" or len(node.outputs) != 1:
            return None
        concat = _only_writer(graph, node.inputs[0], "concat")
        if concat is None or len(concat.inputs) != 2:
            return None
        padding = node.attributes["padding"]
        # a is what may be upsampled, b what may be cropped; without either the order does not matter.
        position = 1 if _cropped(graph, concat.inputs[0], padding)[2] else 0
        mode, a, gone = "none", concat.inputs[position], [concat, node]
        for candidate in (0, 1):
            up = _only_writer(graph, concat.inputs[candidate], "upsample")
            if up is not None and up.attributes["scale"] == 2:
                position, mode, a, gone = candidate, up.attributes["mode"], up.inputs[0], [up, *gone]
                break
        b, crop, crops = _cropped(graph, concat.inputs[1 - position], padding)
        weight_a, weight_b = _split(graph, concat, node.tensors["weight"], position)
        merged = Node(
            "concat_conv",
            node.name,
            (a, b),
            node.outputs,
            {
                "kernel": node.attributes["kernel"],
                "padding": padding,
                "upsample": mode,
                "crop": crop,
                **_activation_of(node),
            },
            {"weight_a": weight_a, "weight_b": weight_b, "bias": node.tensors["bias"]},
        )
        return [*gone, *crops], [merged], node

    return _everywhere(graph, find)


def merge_stem(graph: Graph) -> Graph:
    """Normalisation and first convolution: the convolution normalises what it reads, inside the image only."""

    def find(graph: Graph, node: Node) -> Change | None:
        if node.kind != "conv" or (normalise := _only_writer(graph, node.inputs[0], "normalise")) is None:
            return None
        return [normalise, node], [replace(node, kind="stem", inputs=(IMAGE,))], node

    return _everywhere(graph, find)


def merge_head(graph: Graph) -> Graph:
    """Last convolution, linear 1x1 convolution and output: the 1x1 reads only the pixel that was just computed."""

    def find(graph: Graph, node: Node) -> Change | None:
        if node.kind != "output" or (last := _only_writer(graph, node.inputs[0], "conv")) is None:
            return None
        if last.attributes["kernel"] != [1, 1] or not _is_linear(last):
            return None
        conv = _only_writer(graph, last.inputs[0], "conv")
        if conv is None:
            return None
        tensors = {
            **conv.tensors,
            "head_weight": last.tensors["weight"][:, 0, 0],
            "head_bias": last.tensors["bias"],
        }
        return [conv, last, node], [replace(conv, kind="head", outputs=(), tensors=tensors)], node

    return _everywhere(graph, find)


#: In this order: later rewrites look for what earlier ones leave.
REWRITES: tuple[Callable[[Graph], Graph], ...] = (
    remove_dead_nodes,
    batch_norm_to_affine,
    fold_affine,
    merge_padding,
    hoist_pointwise,
    absorb_activation,
    merge_up_convolution,
    merge_concat_convolution,
    absorb_pool,
    merge_stem,
    merge_head,
)
