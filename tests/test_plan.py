"""Slots, halos and costs."""

from __future__ import annotations

import pytest

from tests.networks import NAMES, fused_of, graph_of, random_graph
from unet_fast.fuse import fuse
from unet_fast.graph import Graph
from unet_fast.plan import ALIGNMENT_BYTES, Plan, cost, plan


def check(planned: Plan) -> None:
    """What executors rely on."""
    graph = planned.graph
    image, *tensors = planned.buffers
    assert (image.name, image.slot, image.halo) == ("image", -1, 0)
    assert [buffer.name for buffer in planned.buffers] == list(graph.shapes)
    assert {buffer.slot for buffer in tensors} == set(range(planned.slots))

    slots: dict[int, str] = {}  # what each slot holds, op by op
    last_read = {name: index for index, node in enumerate(graph.nodes) for name in (*node.outputs, *node.inputs)}
    of = {buffer.name: buffer for buffer in planned.buffers}
    for index, node in enumerate(graph.nodes):
        for name in node.inputs:
            if name != "image":
                assert slots[of[name].slot] == name, f"{node.name} reads {name}, which {slots[of[name].slot]} overwrote"
            padding = node.attributes.get("padding", [0])
            if node.kind in ("conv", "head", "up_conv", "concat_conv"):
                assert of[name].halo >= max(padding)
        for name in node.outputs:
            held = slots.get(of[name].slot)
            assert held is None or last_read[held] < index, f"{node.name} overwrites {held} too early"
            slots[of[name].slot] = name


@pytest.mark.parametrize("name", NAMES)
def test_slots_never_overlap(name: str) -> None:
    for graph in (graph_of(name), fused_of(name)):
        check(plan(graph))


@pytest.mark.parametrize("seed", range(40))
def test_slots_never_overlap_in_random_graphs(seed: int) -> None:
    for graph in (random_graph(seed), fuse(random_graph(seed))):
        check(plan(graph))


def test_a_tensor_that_nobody_reads_has_a_slot_of_its_own_during_its_op() -> None:
    """The convolution pools, and its unpooled result is read by nobody; the two must not share memory."""
    graph = Graph(1)
    x = graph.conv("conv", graph.normalise(), graph_of("plain").nodes[1].tensors["weight"])
    x = graph.upsample("up", graph.pool("pool", x), "nearest")
    graph.finish(graph.pad("pad", x, (1, 1, 1, 1)), "identity")
    planned = plan(fuse(graph))
    assert [buffer.name for buffer in planned.buffers[1:3]] == ["conv", "pool"]
    assert planned.buffers[1].slot != planned.buffers[2].slot
    check(planned)


def test_the_arena_of_relunet16_is_close_to_the_least_possible() -> None:
    planned = plan(fused_of("relunet16"))
    arena, bound = planned.arena_bytes(256, 256), planned.lower_bound_bytes(256, 256)
    assert arena % ALIGNMENT_BYTES == 0
    assert bound <= arena <= 1.2 * bound
    everything = sum(buffer.bytes(256, 256, 4) for buffer in planned.buffers)
    assert arena < everything / 2.4


def test_costs_of_relunet16() -> None:
    """17 C^2 multiply-adds per pixel of an up_conv, 9 C C' of a convolution, 5.6 GFLOP in all."""
    fused = fused_of("relunet16")
    costs = {node.name: cost(fused, node, 256, 256) for node in fused.nodes}
    assert costs["decoder0.conv0"].flops == 2 * 256 * 256 * 17 * 16**2
    assert costs["encoder1.conv0"].flops == 2 * 128 * 128 * 9 * 16 * 32
    assert costs["encoder0.conv0"].flops == 2 * 256 * 256 * 9 * 16
    assert costs["decoder0.conv1"].flops == 2 * 256 * 256 * (9 * 16 * 16 + 16)
    assert sum(spent.flops for spent in costs.values()) == 5_624_561_664
    # The image and two results of 16 channels, one of them pooled, then the weights.
    assert costs["encoder0.conv1"].bytes == 4 * (256 * 256 * 32 + 128 * 128 * 16 + 9 * 16 * 16 + 16)


def test_unfused_costs_more() -> None:
    graph = graph_of("relunet16")

    def total(graph: Graph) -> tuple[int, int]:
        costs = [cost(graph, node, 256, 256) for node in graph.nodes]
        return sum(spent.flops for spent in costs), sum(spent.bytes for spent in costs)

    flops, moved = total(fused_of("relunet16"))
    plain_flops, plain_moved = total(graph)
    assert flops < 0.95 * plain_flops
    assert moved < 0.5 * plain_moved
