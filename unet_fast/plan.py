"""Memory and cost of a fused graph: which tensors share a slot of the arena, and what each op computes and moves.

Slots, not offsets, so that one plan serves every image size and batch: tensors whose lives do not overlap share a
slot, and a slot is as large as its largest tensor at the size that runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from .graph import IMAGE, Graph, Node, Shape

#: Every slot begins at a multiple of this many bytes.
ALIGNMENT_BYTES = 256
#: Of a tensor in floating point; an int8 file keeps those in bf16 where it can.
ELEMENT_BYTES = {"float32": 4, "bf16": 2, "fp16": 2, "int8": 2}


@dataclass(frozen=True)
class Buffer:
    """A tensor and its place.  `halo` is in pixels; slot -1 is the caller's image.

    first, last: the ops (by index) that write it and read it last; it keeps its slot from one to the other, both
    included.
    in_bytes: it holds uint8, whatever the others hold.
    """

    name: str
    shape: Shape
    halo: int
    slot: int
    first: int
    last: int
    in_bytes: bool = False

    def bytes(self, height: int, width: int, element_bytes: int) -> int:
        """Size for one image of `height` x `width`, zero halo included."""
        rows, columns = self.shape.height.at(height) + 2 * self.halo, self.shape.width.at(width) + 2 * self.halo
        return rows * columns * self.shape.channels * (1 if self.in_bytes else element_bytes)


@dataclass(frozen=True)
class Plan:
    """The buffers of a graph, the image first, then in the order in which the ops write them."""

    graph: Graph
    buffers: tuple[Buffer, ...]
    slots: int

    def arena_bytes(self, height: int, width: int, element_bytes: int = 4) -> int:
        """All slots one after the other, for one image."""
        total = 0
        for slot in range(self.slots):
            largest = max(buffer.bytes(height, width, element_bytes) for buffer in self.buffers if buffer.slot == slot)
            total += -(-largest // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        return total

    def lower_bound_bytes(self, height: int, width: int, element_bytes: int = 4) -> int:
        """What any arena needs: the tensors alive at once during the op where that is most."""
        return max(
            sum(
                buffer.bytes(height, width, element_bytes)
                for buffer in self.buffers
                if buffer.slot >= 0 and buffer.first <= index <= buffer.last
            )
            for index in range(len(self.graph.nodes))
        )


def plan(graph: Graph) -> Plan:
    """Halos, lives and slots for the tensors of `graph`.

    Tensors take slots from the largest (at the training tile) to the smallest, each the first slot that is free for
    its whole life: a slot's first tensor is then its largest, and whatever joins later costs nothing.
    """
    buffers = [Buffer(IMAGE, graph.shapes[IMAGE], 0, -1, 0, 0)]
    for index, node in enumerate(graph.nodes):
        for name in node.outputs:
            reads = [at for at, reader in enumerate(graph.nodes) if name in reader.inputs]
            halo = max((_halo(reader) for reader in graph.readers(name)), default=0)
            in_bytes = "output_scale" in node.attributes
            buffers.append(Buffer(name, graph.shapes[name], halo, -1, index, max([index, *reads]), in_bytes))
    side = graph.size_rule.at_least(graph.tile)
    slots: list[list[Buffer]] = []
    placed: dict[str, int] = {}
    for buffer in sorted(buffers[1:], key=lambda buffer: -buffer.bytes(side, side, 2)):
        free = (slot for slot, tenants in enumerate(slots) if not any(_overlap(buffer, other) for other in tenants))
        slot = next(free, len(slots))
        if slot == len(slots):
            slots.append([])
        slots[slot].append(buffer)
        placed[buffer.name] = slot
    numbered = (replace(buffer, slot=placed.get(buffer.name, -1)) for buffer in buffers)
    return Plan(graph, tuple(numbered), len(slots))


def _overlap(one: Buffer, other: Buffer) -> bool:
    """Whether both are alive during some op."""
    return one.first <= other.last and other.first <= one.last


def _halo(reader: Node) -> int:
    """The largest zero padding that `reader` applies to what it reads."""
    if reader.kind in ("conv", "head", "up_conv", "concat_conv"):
        return max(reader.attributes["padding"])
    return 0


@dataclass(frozen=True)
class Cost:
    """Of one op for one image: 2 floating point operations per multiply-add; bytes read and written once each.

    Multiply-adds are those of the direct form, also of an op in Winograd's form, which needs fewer.
    """

    flops: int
    bytes: int
    weights: int


def cost(graph: Graph, node: Node, height: int, width: int, element_bytes: int = 4) -> Cost:
    """What `node` computes and moves for one image of `height` x `width`; pixels and results count as 4 bytes."""

    def values(shape: Shape) -> int:
        return shape.height.at(height) * shape.width.at(width) * shape.channels

    inputs = [graph.shapes[name] for name in node.inputs]
    outputs = [graph.shapes[name] for name in node.outputs] or [graph.result]
    weights = sum(array.size for array in node.tensors.values())
    moved = sum(values(shape) for shape in (*inputs, *outputs)) + weights
    if "arithmetic" in node.attributes:
        element_bytes = 1
    pixels = values(outputs[0]) // outputs[0].channels
    tensors = node.tensors
    if node.kind in ("stem", "conv"):
        multiply_adds = values(outputs[0]) * inputs[0].channels * math.prod(node.attributes["kernel"])
    elif node.kind == "head":
        multiply_adds = pixels * (tensors["weight"].size + tensors["head_weight"].size)
    elif node.kind == "up_conv":
        # Each pixel takes one of the four phases, of 2x2 taps.
        multiply_adds = values(outputs[0]) * (4 * inputs[0].channels + 9 * inputs[1].channels)
    elif node.kind == "concat_conv":
        multiply_adds = pixels * (tensors["weight_a"].size + tensors["weight_b"].size)
    elif node.kind == "conv_transpose":
        multiply_adds = values(inputs[0]) // inputs[0].channels * tensors["weight"].size
    elif node.kind in ("affine", "batch_norm"):
        multiply_adds = values(outputs[0])
    else:
        multiply_adds = 0
    return Cost(2 * multiply_adds, moved * element_bytes, weights)
