"""The rewrites: each leaves the function as it was, and all together leave as few ops as there should be.

The graph before a rewrite is the reference; `test_graph.py` compares that with PyTorch, and so does the last step here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from tests.networks import NAMES, RONNEBERGER, fused_of, graph_of, judge, nuclei_graph, random_graph, random_weights
from unet_fast import fuse, reference
from unet_fast.freeze import relative_error
from unet_fast.graph import Graph, from_spec

#: Everything is float64; a rewrite only changes the order of sums.
TOLERANCE = 1e-12


def pixels_for(graph: Graph, seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).random((2, height, width, graph.channels))


def check_equal(before: Graph, after: Graph, seed: int = 0) -> None:
    """Both give the same logits, from the smallest legal image to one that is not square."""
    rule = before.size_rule
    assert after.size_rule == rule
    for steps in ((0, 0), (0, 1), (2, 1)):
        height, width = (rule.minimum + step * rule.multiple for step in steps)
        pixels = pixels_for(before, seed, height, width)
        assert relative_error(reference.logits(after, pixels), reference.logits(before, pixels)) <= TOLERANCE


def kinds(graph: Graph) -> Counter[str]:
    return Counter(node.kind for node in graph.nodes)


@pytest.mark.parametrize("name", NAMES)
def test_fused_equals_plain_and_pytorch(name: str) -> None:
    graph, fused = graph_of(name), fused_of(name)
    check_equal(graph, fused)
    pixels = pixels_for(graph, 2, graph.size_rule.minimum, graph.size_rule.minimum)
    assert relative_error(reference.probability(fused, pixels), judge(graph, pixels)) <= TOLERANCE
    assert "batch_norm" not in kinds(fused)


@pytest.mark.parametrize("seed", range(30))
def test_random_graphs_stay_the_same_through_every_rewrite(seed: int) -> None:
    graph = random_graph(seed)
    for rewrite in fuse.REWRITES:
        rewritten = rewrite(graph)
        check_equal(graph, rewritten, seed)
        graph = rewritten


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("relunet16", {"stem": 1, "conv": 12, "up_conv": 4, "head": 1}),
        ("batch_norm", {"stem": 1, "conv": 9, "up_conv": 3, "head": 1}),
        ("skip_first", {"stem": 1, "conv": 9, "up_conv": 3, "head": 1}),
        ("nearest", {"stem": 1, "conv": 9, "up_conv": 3, "head": 1}),
        ("bilinear", {"stem": 1, "conv": 9, "concat_conv": 3, "head": 1}),
        ("bilinear_corners", {"stem": 1, "conv": 6, "concat_conv": 2, "head": 1}),
        ("up_relu", {"stem": 1, "conv": 6, "conv_transpose": 2, "concat_conv": 2, "head": 1}),
        ("nearest_conv", {"stem": 1, "conv": 12, "upsample": 3, "concat_conv": 3, "head": 1}),
        ("valid", {"stem": 1, "conv": 9, "up_conv": 3, "head": 1}),
        ("valid_bilinear", {"stem": 1, "conv": 6, "concat_conv": 2, "head": 1}),
        ("one_conv", {"stem": 1, "conv": 4, "up_conv": 3, "output": 1}),
    ],
)
def test_ops_that_remain(name: str, expected: dict[str, int]) -> None:
    assert kinds(fused_of(name)) == expected


def test_relunet16_is_18_ops_that_pool_as_they_go() -> None:
    fused = fused_of("relunet16")
    assert len(fused.nodes) == 18
    assert [len(node.outputs) for node in fused.nodes] == [1, 2] * 4 + [1] * 9 + [0]
    assert all(node.attributes["activation"] == "relu" for node in fused.nodes)


def test_ronneberger_crops_inside_the_ops() -> None:
    fused = fuse.fuse(from_spec(RONNEBERGER, random_weights(RONNEBERGER)))
    crops = [node.attributes["crop"] for node in fused.nodes if node.kind == "concat_conv"]
    assert crops == [[4, 4], [16, 16], [40, 40], [88, 88]]
    assert "pad" not in kinds(fused)


def test_the_published_nuclei_network_needs_no_plain_op(shared_data) -> None:
    graph = nuclei_graph(shared_data / "reference_unet_nuclei")
    fused = fuse.fuse(graph)
    assert kinds(fused) == {"stem": 1, "conv": 12, "concat_conv": 3, "head": 1}
    assert {node.attributes["upsample"] for node in fused.nodes if node.kind == "concat_conv"} == {"bilinear"}
    check_equal(graph, fused)


# -- single rewrites, on the least graph that shows them -------------------------------------------------------------

Build = Callable[[Graph, str], str]


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(0, 0.5, shape)


def small(build: Build, channels: int = 4) -> Graph:
    """A graph that begins with a convolution to `channels` and ends with one to a single class."""
    graph = Graph(1)
    x = graph.conv("first", graph.normalise(), weight(channels, 3, 3, 1), weight(channels), (1, 1, 1, 1))
    x = build(graph, graph.activation("first_tanh", x, "tanh"))
    x = graph.activation("last_tanh", x, "tanh")
    return graph.finish(graph.conv("last", x, weight(1, 1, 1, graph.shapes[x].channels)), "sigmoid")


def norm(graph: Graph, x: str, name: str = "norm") -> str:
    channels = graph.shapes[x].channels
    return graph.batch_norm(name, x, *(weight(channels, 1, copy)[:, 0, 0] for copy in (1, 2, 3)), np.ones(channels))


def through(build: Build, *rewrites: Callable[[Graph], Graph]) -> Counter[str]:
    """Kinds of node that are left of the graph after the rewrites, each checked."""
    graph = small(build)
    for rewrite in rewrites:
        rewritten = rewrite(graph)
        check_equal(graph, rewritten)
        graph = rewritten
    return kinds(graph)


def test_batch_norm_folds_into_the_convolution_before_it() -> None:
    def after_conv(graph: Graph, x: str) -> str:
        return norm(graph, graph.conv("conv", x, weight(4, 3, 3, 4), weight(4), (1, 1, 1, 1)))

    def after_transposed(graph: Graph, x: str) -> str:
        x = graph.pool("pool", x)
        return norm(graph, graph.conv_transpose("up", x, weight(4, 2, 2, 4), weight(4)))

    for build in (after_conv, after_transposed):
        left = through(build, fuse.batch_norm_to_affine, fuse.fold_affine)
        assert left["affine"] == left["batch_norm"] == 0


def test_batch_norm_that_cannot_fold_stays_an_affine() -> None:
    def before_conv(graph: Graph, x: str) -> str:
        return graph.conv("conv", norm(graph, x), weight(4, 3, 3, 4), weight(4), (1, 1, 1, 1))

    def after_shared_conv(graph: Graph, x: str) -> str:
        x = graph.conv("conv", x, weight(4, 3, 3, 4), weight(4), (1, 1, 1, 1))
        return graph.add("sum", x, norm(graph, x))

    for build in (before_conv, after_shared_conv):
        assert through(build, fuse.batch_norm_to_affine, fuse.fold_affine)["affine"] == 1


def test_padding_merges_only_below_the_kernel() -> None:
    def padded(pad: tuple[int, ...]) -> Build:
        def build(graph: Graph, x: str) -> str:
            x = graph.conv("conv", graph.pad("pad", x, pad), weight(4, 3, 3, 4), weight(4), (0, 0, 1, 0))
            surplus = [4 - pad[0] - pad[2] - 3, 2 - pad[1] - pad[3]]
            return graph.pad("even", x, (0, 0, surplus[0], surplus[1]))

        return build

    assert through(padded((2, 1, 1, 1)), fuse.merge_padding)["pad"] == 1
    assert through(padded((3, 1, 1, 1)), fuse.merge_padding)["pad"] == 2
    assert through(padded((1, -1, 1, 1)), fuse.merge_padding)["pad"] == 2


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bilinear_corners"])
def test_pointwise_convolution_moves_before_the_upsampling(mode: str) -> None:
    def build(graph: Graph, x: str) -> str:
        x = graph.upsample("up", graph.pool("pool", x), mode)
        return graph.conv("pointwise", x, weight(2, 1, 1, 4), weight(2))

    graph = small(build)
    hoisted = fuse.hoist_pointwise(graph)
    check_equal(graph, hoisted)
    names = [node.name for node in hoisted.nodes]
    assert names.index("pointwise") < names.index("up")


def test_pointwise_convolution_of_a_shared_upsampling_stays() -> None:
    def build(graph: Graph, x: str) -> str:
        x = graph.upsample("up", graph.pool("pool", x), "nearest")
        return graph.add("sum", graph.conv("pointwise", x, weight(4, 1, 1, 4), weight(4)), x)

    graph = small(build)
    assert [node.name for node in fuse.hoist_pointwise(graph).nodes] == [node.name for node in graph.nodes]


@pytest.mark.parametrize(("activation", "left"), [("relu", 2), ("leaky_relu", 2), ("sigmoid", 3), ("softmax", 3)])
def test_only_relu_and_leaky_relu_are_absorbed(activation: str, left: int) -> None:
    def build(graph: Graph, x: str) -> str:
        x = graph.conv("conv", x, weight(4, 3, 3, 4), weight(4), (1, 1, 1, 1))
        return graph.activation("activation", x, activation, 0.2)

    assert through(build, fuse.absorb_activation)["activation"] == left


def test_two_activations_in_a_row_stay_two() -> None:
    def build(graph: Graph, x: str) -> str:
        x = graph.conv("conv", x, weight(4, 3, 3, 4), weight(4), (1, 1, 1, 1))
        return graph.activation("second", graph.activation("first_relu", x, "leaky_relu", 0.5), "leaky_relu", 0.5)

    assert through(build, fuse.absorb_activation)["activation"] == 3


def test_pooling_is_a_second_output_even_where_the_first_is_read_too() -> None:
    def build(graph: Graph, x: str) -> str:
        x = graph.conv("conv", x, weight(4, 3, 3, 4), weight(4), (1, 1, 1, 1))
        low = graph.upsample("up", graph.pool("pool", x), "nearest")
        return graph.add("sum", low, x)

    assert through(build, fuse.absorb_pool)["pool"] == 0


@pytest.mark.parametrize("kind", ["average", "3x3", "after tanh"])
def test_other_poolings_stay(kind: str) -> None:
    def build(graph: Graph, x: str) -> str:
        x = graph.conv("conv", x, weight(4, 3, 3, 4), weight(4), (1, 1, 1, 1))
        if kind == "after tanh":
            x = graph.activation("tanh", x, "tanh")
        kernel = (3, 3) if kind == "3x3" else (2, 2)
        x = graph.pool("pool", x, "average" if kind == "average" else "max", kernel)
        return graph.upsample("up", x, "nearest", kernel[0])

    assert through(build, fuse.absorb_pool)["pool"] == 1


def up_and_concat(up: str, *, up_first: bool, padding: int, kernel: int = 3, crop: bool = False) -> Build:
    def build(graph: Graph, skip: str) -> str:
        x = graph.conv("low", graph.pool("pool", skip), weight(6, 3, 3, 4), weight(6), (1, 1, 1, 1))
        x = graph.activation("low_tanh", x, "tanh")
        if up == "transpose":
            x = graph.conv_transpose("up", x, weight(3, 2, 2, 6), weight(3) + 1)
        else:
            x = graph.upsample("up", x, up)
        if crop:
            x = graph.pad("cut_up", x, (-1, 0, -1, -2))
            skip = graph.pad("cut", skip, (-2, -1, 0, -1))
        x = graph.concat("concat", *((x, skip) if up_first else (skip, x)))
        x = graph.conv("conv", x, weight(5, kernel, kernel, graph.shapes[x].channels), weight(5), (padding,) * 4)
        cut = 2 * padding + 1 - kernel - (2 if crop else 0)
        return graph.pad("even", x, (0, 0, -cut, -cut))

    return build


@pytest.mark.parametrize("up_first", [True, False])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("up", ["transpose", "nearest"])
def test_up_convolution(up: str, padding: int, up_first: bool) -> None:
    build = up_and_concat(up, up_first=up_first, padding=padding)
    left = through(build, fuse.merge_up_convolution)
    assert left["up_conv"] == 1
    assert left["concat"] == left["upsample"] == left["conv_transpose"] == 0


def test_the_bias_of_the_up_convolution_differs_at_the_border() -> None:
    """A single bias for all pixels would be wrong by as much as the up-convolution's own."""
    graph = small(up_and_concat("transpose", up_first=True, padding=1))
    (node,) = (node for node in fuse.merge_up_convolution(graph).nodes if node.kind == "up_conv")
    bias = node.tensors["bias"]
    assert bias.shape == (3, 3, 5)
    assert len({tuple(vector) for vector in bias.reshape(9, 5).round(9)}) == 9
    assert np.abs(bias - bias[1, 1]).max() > 0.5


def test_the_nine_biases_are_one_without_padding() -> None:
    graph = small(up_and_concat("transpose", up_first=True, padding=0))
    (node,) = (node for node in fuse.merge_up_convolution(graph).nodes if node.kind == "up_conv")
    assert (node.tensors["bias"] == node.tensors["bias"][1, 1]).all()


@pytest.mark.parametrize("up_first", [True, False])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("up", ["transpose", "nearest", "bilinear", "bilinear_corners"])
def test_concat_convolution(up: str, padding: int, up_first: bool) -> None:
    build = up_and_concat(up, up_first=up_first, padding=padding, kernel=3 - (up == "nearest"))
    left = through(build, fuse.merge_concat_convolution)
    assert left["concat_conv"] == 1
    assert left["concat"] == left["upsample"] == 0


@pytest.mark.parametrize("padding", [0, 1])
def test_cropped_skips(padding: int) -> None:
    """The crop of the skip goes into the op where nothing is padded; that of the upsampled tensor stays."""
    build = up_and_concat("nearest", up_first=False, padding=padding, crop=True)
    left = through(build, fuse.merge_up_convolution, fuse.merge_concat_convolution)
    assert left["concat_conv"] == 1
    assert left["pad"] == (2 if padding == 0 else 3)


def test_an_up_convolution_is_merged_only_where_that_saves_work() -> None:
    """From many channels to one the transposed convolution is the cheap way: 4 * 64 * 8 > 64 * 1 + 9 * 1 * 8."""

    def build(graph: Graph, x: str) -> str:
        low = graph.conv("low", graph.pool("pool", x), weight(64, 1, 1, 4), weight(64))
        up = graph.conv_transpose("up", low, weight(1, 2, 2, 64), weight(1))
        return graph.conv("conv", graph.concat("concat", up, x), weight(8, 3, 3, 5), weight(8), (1, 1, 1, 1))

    assert kinds(fuse.fuse(small(build)))["concat_conv"] == 1


def test_dead_nodes_go() -> None:
    def build(graph: Graph, x: str) -> str:
        graph.activation("unused", graph.conv("dead", x, weight(4, 1, 1, 4)), "relu")
        return x

    assert through(build, fuse.remove_dead_nodes) == kinds(small(lambda graph, x: x))


def test_a_stem_shares_the_image_with_nobody() -> None:
    """Two readers of the normalised image: it stays a tensor of its own."""
    graph = Graph(1)
    x = graph.normalise()
    a, b = (graph.conv(name, x, weight(4, 3, 3, 1), weight(4), (1, 1, 1, 1)) for name in "ab")
    graph.finish(graph.conv("last", graph.add("sum", a, b), weight(1, 1, 1, 4)), "identity")
    fused = fuse.fuse(graph)
    check_equal(graph, fused)
    assert kinds(fused) == {"normalise": 1, "conv": 3, "add": 1, "output": 1}
