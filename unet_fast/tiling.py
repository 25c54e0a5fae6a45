"""How much context a tile needs, so that tiles put together equal the whole image bit for bit or nearly so.

The halo is derived from the graph: from both ends of the output, the rows (then the columns) that it depends on are
followed back through every node as if the image went on for ever.  How far they reach past the end of any tensor is
how far the tile must reach past its inside.
"""

from __future__ import annotations

from .graph import Graph, Node


def exact_halo(graph: Graph) -> int | None:
    """Pixels of context on each side of a tile's inside, a multiple of `graph.size_rule.multiple`.

    Tiles begin at multiples of `multiple`, and so does the inside of a tile, because the halo is one too.  (A pixel in
    the middle of a pooling window may look a little further than one at its edge, but it has also more of the tile
    around it.)  None where no tile can equal the whole image: the sampling grid of align_corners depends on its size,
    and the norm of a line on its length.
    The graph must be plain, not yet fused.
    """
    if any(node.attributes.get("mode") == "bilinear_corners" or node.kind == "l2_normalise" for node in graph.nodes):
        return None
    rule = graph.size_rule
    reach = max(_reach(graph, axis, rule.at_least(rule.multiple)) for axis in (0, 1))
    return -(-reach // rule.multiple) * rule.multiple


def _reach(graph: Graph, axis: int, pixels: int) -> int:
    """Image pixels that what a tile of `pixels` depends on reaches past its ends along an axis.

    Output row r lies at image row r + margin, so the image rows 0 .. pixels - 1 are these output rows:
    """
    first, last = -graph.margin, pixels - 1 - graph.margin
    needed: dict[str, tuple[int, int]] = {}
    for node in reversed(graph.nodes):
        here = (first, last) if not node.outputs else needed.get(node.outputs[0])
        if here is None:  # nothing reads it
            continue
        low, high = _needed_input(node, axis, *here)
        for tensor in node.inputs:
            before = needed.get(tensor, (low, high))
            needed[tensor] = (min(low, before[0]), max(high, before[1]))
    reach = 0
    for tensor, (low, high) in needed.items():
        size = graph.shapes[tensor].sides[axis]
        beyond = max(-low, high - (size.at(pixels) - 1))
        reach = max(reach, -(-beyond * size.divide // size.multiply))
    return reach


def _needed_input(node: Node, axis: int, low: int, high: int) -> tuple[int, int]:
    """First and last row of the inputs that rows `low` .. `high` of the output depend on."""
    if node.kind == "conv":
        before, kernel = node.attributes["padding"][axis], node.attributes["kernel"][axis]
        return low - before, high - before + kernel - 1
    if node.kind == "conv_transpose":
        # Row r of the cropped result is row r + before of the full one, to which input i gives i * stride + tap.
        before, kernel = node.attributes["padding"][axis], node.attributes["kernel"][axis]
        stride = node.attributes["stride"][axis]
        return -(-(low + before - kernel + 1) // stride), (high + before) // stride
    if node.kind == "pool":
        kernel = node.attributes["kernel"][axis]
        return low * kernel, high * kernel + kernel - 1
    if node.kind == "upsample":
        scale = node.attributes["scale"]
        if node.attributes["mode"] == "nearest":
            return low // scale, high // scale
        # Bilinear reads the two rows around (r + 1/2) / scale - 1/2.
        return (2 * low + 1 - scale) // (2 * scale), (2 * high + 1 - scale) // (2 * scale) + 1
    if node.kind == "pad":
        before = node.attributes["padding"][axis]
        return low - before, high - before
    return low, high
