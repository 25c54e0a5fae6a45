"""int8: the same bits on every instruction set, thread and batch position, what the gate keeps, and what is refused."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.networks import SPECS, fused_of, graph_of, random_weights
from unet_fast import Engine, engine_file, freeze, reference
from unet_fast.cli import main
from unet_fast.errors import EngineFileError, UnsupportedError
from unet_fast.freeze import _weights, describe, golden_image
from unet_fast.fuse import fuse
from unet_fast.graph import Array, Graph, Node, has_winograd_form
from unet_fast.images import write_image
from unet_fast.inspect import inspect
from unet_fast.plan import cost
from unet_fast.quantise import (
    GATE,
    WIDENINGS,
    Range,
    _integers,
    agreement,
    at_positions,
    calibration_images,
    candidates,
    observe,
    quantise,
    rewrite,
    winograd_ops,
)
from unet_fast.verify import verify

#: Networks that are int8 behind the stem, with odd sizes and channels.
WHOLE = ("plain", "rgb", "classes", "standardise", "width24", "skip_first", "up_relu", "nearest", "valid")
#: Those with ops that stay in floating point, or plain ops between int8 ones.
MIXED = ("one_conv", "bilinear", "nearest_conv", "valid_nearest_conv", "valid_corners")
ISAS = ("portable", "avx2", "avx512", "auto")


def pictures(channels: int, count: int = 4, side: int = 64, seed: int = 0) -> list[np.ndarray[Any, Any]]:
    return [golden_image(side, side, channels, seed=100 * seed + index) for index in range(count)]


def quantised(name: str, seed: int = 0, leave: Sequence[int] = (), winograd: bool = False) -> bytes:
    """An engine file in int8 of a network with random weights, without the gate, whose results are the logits.

    `leave`: indices of ops that stay in floating point; `winograd`: whether all ops that have Winograd's form take it.
    """
    graph = copy.copy(graph_of(name, seed))
    graph.output = "identity"
    fused = fuse(graph)
    names, _ = candidates(fused)
    chosen = [op for index, op in enumerate(names) if index not in leave]
    ranges = observe(fused, pictures(graph.channels, seed=seed))
    return serialised(graph, rewrite(fused, chosen, ranges, having_winograd_form(fused) if winograd else ()))


def having_winograd_form(graph: Graph) -> list[str]:
    return [node.name for node in graph.nodes if has_winograd_form(node)]


def forms(*names: str) -> pytest.MarkDecorator:
    """Parametrises by network and form: each in the direct one, and in Winograd's where it has such ops."""
    cases = [(name, False) for name in names]
    cases += [(name, True) for name in names if having_winograd_form(fused_of(name))]
    ids = [f"{name}-{'winograd' if winograd else 'direct'}" for name, winograd in cases]
    return pytest.mark.parametrize(("name", "winograd"), cases, ids=ids)


def serialised(graph: Graph, final: Graph) -> bytes:
    output = {"kind": "identity", "channels": graph.result.channels, "threshold": 0.5, "class_names": [], "palette": []}
    document = describe(graph, final) | {"name": "n", "precision": "int8", "output": output}
    return engine_file.serialise(document | {"golden": [], "accuracy": {}, "kernels": []}, _weights(final))


def image_sizes(engine: Engine) -> list[tuple[int, int]]:
    """Legal heights and widths: the smallest, odd ones, and some around the vectors and bands of the kernels."""
    info = engine.info

    def legal(side: int) -> int:
        return max(info.minimum, side + (info.remainder - side) % info.multiple)

    return [(legal(height), legal(width)) for height, width in ((1, 1), (36, 20), (20, 132), (68, 68))]


@forms(*WHOLE)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_instruction_set_gives_the_bits_of_the_plain_loops(name: str, winograd: bool, seed: int) -> None:
    data = quantised(name, seed, winograd=winograd)
    slow = Engine(data, device="cpu-reference")
    assert slow.precision == "int8"
    random = np.random.default_rng(seed)
    engines = [Engine(data, device="cpu", cpu_isa=isa, threads=2) for isa in available()]
    for height, width in image_sizes(slow):
        for dtype in (np.uint8, np.float32):
            image = random.uniform(0, 255 if dtype == np.uint8 else 1, (height, width, slow.channels)).astype(dtype)
            truth = slow.probability(image, tiling="none")
            assert np.isfinite(truth).all()
            for engine in engines:
                result = np.full_like(truth, np.nan)
                engine.probability(image, tiling="none", out=result)
                assert np.array_equal(result, truth), f"{engine.cpu_isa} at {height} x {width}, {dtype.__name__}"


def extreme(data: bytes, random: np.random.Generator) -> bytes:
    """The engine file with such weights that instructions which add two products in 16 bits would cut most sums."""
    file = engine_file.read(data)
    tensors = {
        key: random.choice([-128, -127, -64, 0, 1, 65, 127], array.shape).astype(np.int8)
        if array.dtype == np.int8
        else array
        for key, array in file.tensors.items()
    }
    return engine_file.serialise(file.document, tensors)


@forms("rgb", "width24", "up_relu", "valid")
@pytest.mark.parametrize("seed", [0, 1])
def test_extreme_weights_on_extreme_bytes(name: str, winograd: bool, seed: int) -> None:
    """Sums of two products that 16 bits do not hold, which the instructions of AVX2 would cut, in most words."""
    random = np.random.default_rng(seed)
    data = extreme(quantised(name, seed, winograd=winograd), random)
    slow = Engine(data, device="cpu-reference")
    for height, width in image_sizes(slow):
        image = random.choice([0, 255], (height, width, slow.channels)).astype(np.uint8)
        truth = slow.probability(image, tiling="none")
        assert len(np.unique(truth)) > 1
        for isa in available():
            result = Engine(data, device="cpu", cpu_isa=isa).probability(image, tiling="none")
            assert np.array_equal(result, truth), f"{isa} at {height} x {width}"


@functools.cache
def available() -> list[str]:
    """The instruction sets that this machine can be held to."""
    plain = quantised("plain")
    found = []
    for isa in ISAS:
        try:
            Engine(plain, device="cpu", cpu_isa=isa)
        except (UnsupportedError, ValueError):
            continue
        found.append(isa)
    return found


@forms("plain", "up_relu", "classes", "valid")
def test_the_python_reference_foretells_the_runtime(name: str, winograd: bool) -> None:
    """Only the stem differs, which NumPy adds up in float64, so that now and then a byte is one step off."""
    data = quantised(name, seed=3, winograd=winograd)
    graph = engine_file.read(data).graph
    engine = Engine(data, device="cpu")
    image = pictures(graph.channels, 1, graph.size_rule.at_least(48), seed=7)[0]
    truth = reference.probability(graph, reference.to_unit(image[None]))[0]
    result = engine.probability(image, tiling="none").reshape(truth.shape)
    assert np.linalg.norm(result - truth) <= 2e-3 * np.linalg.norm(truth)


@forms("plain", "rgb", *MIXED)
def test_threads_batches_and_strides_change_no_bit(name: str, winograd: bool) -> None:
    data = quantised(name, seed=5, winograd=winograd)
    one = Engine(data, device="cpu", threads=1)
    height, width = image_sizes(one)[1]
    random = np.random.default_rng(5)
    batch = random.integers(0, 256, (5, height, width, one.channels)).astype(np.uint8)
    alone = [one.probability(image, tiling="none") for image in batch]
    for threads in (1, 2, 5):
        engine = Engine(data, device="cpu", threads=threads)
        for _ in range(2):
            assert np.array_equal(engine.probability(batch, tiling="none"), np.stack(alone))
        assert np.array_equal(engine.probability(batch[:, ::-1][:, ::-1], tiling="none"), np.stack(alone))


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("isa", ["portable", "auto"])
def test_ops_in_floating_point_fit_in_between(name: str, isa: str) -> None:
    data = quantised(name, seed=2)
    kinds = {node.kind for node in engine_file.read(data).graph.nodes}
    assert "dequantise" in kinds
    engine, slow = Engine(data, device="cpu", cpu_isa=isa), Engine(data, device="cpu-reference")
    for height, width in image_sizes(slow):
        image = pictures(slow.channels, 1, max(height, width), seed=9)[0][:height, :width]
        truth = slow.probability(image, tiling="none")
        error = np.linalg.norm(engine.probability(image, tiling="none") - truth) / np.linalg.norm(truth)
        assert error <= (0.02 if isa == "auto" else 2e-3)  # bf16, or a byte that is one step off


@forms("rgb", "plain", "nearest")
@pytest.mark.parametrize("fewer", [0, 1, 5])
def test_exact_tiles_give_the_bits_of_one_pass(name: str, winograd: bool, fewer: int) -> None:
    """Of any size and place, since integers add up to the same in any order; also in tiles that are hardly larger than
    what a cut spoils, and where the number of steps between tiles is odd.
    """
    engine = Engine(quantised(name, seed=6, winograd=winograd), device="cpu")
    info = engine.info
    assert info.halo is not None
    height, width = ((53 - fewer) * info.multiple, (40 + fewer) * info.multiple)
    image = np.random.default_rng(fewer).integers(0, 256, (height, width, info.channels)).astype(np.uint8)
    whole = engine.probability(image, tiling="none")
    for steps in (3, 4, 7, 12):
        tile = 2 * info.halo + steps * info.multiple
        result = engine.probability(image, tiling="exact", tile=tile)
        assert np.array_equal(result, whole), f"{np.argwhere(result != whole)[:5]} in tiles of {tile}"


@pytest.mark.parametrize("winograd", [False, True], ids=["direct", "winograd"])
@pytest.mark.parametrize("leave", [(0,), (1, 2), (-1,), tuple(range(1, 20))])
def test_any_op_can_be_left_in_floating_point(leave: tuple[int, ...], winograd: bool) -> None:
    """The first, two that follow each other, the last, all but one."""
    fused = fuse(graph_of("rgb", 4))
    count = len(candidates(fused)[0])
    data = quantised("rgb", 4, [index % count if index < 0 else index for index in leave], winograd)
    engine, slow = Engine(data, device="cpu", cpu_isa="portable"), Engine(data, device="cpu-reference")
    image = pictures(3, 1, 40, seed=1)[0]
    truth = slow.probability(image, tiling="none")
    result = engine.probability(image, tiling="none")
    assert np.linalg.norm(result - truth) <= 2e-3 * np.linalg.norm(truth)
    original = reference.logits(fused, reference.to_unit(image[None]))[0]
    assert np.linalg.norm(truth.reshape(original.shape) - original) <= 0.2 * np.linalg.norm(original)


# -- what is rounded, and how ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "bound"), [("direct", 0.12), ("winograd", 0.35), ("winograd, wide steps", 0.15)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_rewritten_graph_stays_close(seed: int, form: str, bound: float) -> None:
    """Bytes instead of floats cost a random network, which averages nothing out, several percent of its logits, and
    cut differences, of which it has far more than a trained one, up to a quarter, unless steps are larger.
    """
    fused = fuse(graph_of("rgb", seed))
    images = pictures(3, 4, seed=seed)
    chosen = candidates(fused)[0]
    in_winograd = [] if form == "direct" else having_winograd_form(fused)
    final = rewrite(fused, chosen, observe(fused, images), in_winograd, 2.0 if "wide" in form else 1.0)
    pixels = reference.to_unit(images[0][None])
    truth, result = reference.logits(fused, pixels), reference.logits(final, pixels)
    error = np.linalg.norm(result - truth) / np.linalg.norm(truth)
    assert error <= bound
    assert [node.name for node in final.nodes if "arithmetic" in node.attributes] == chosen
    for node in final.nodes:
        for name, array in node.tensors.items():
            if "arithmetic" in node.attributes and name.startswith("weight"):
                assert array.dtype == np.int8
                assert array.min() >= -127


@pytest.mark.parametrize("name", ["plain", "nearest", "valid", "concat"])
def test_equal_sums_from_inputs_of_different_scales(name: str) -> None:
    """Scaling one input of a concat by 8, and its weights by 1/8, leaves every number in place."""
    spec_name = "up_relu" if name == "concat" else name
    fused = fuse(graph_of(spec_name, 1))
    node = next(node for node in fused.nodes if node.kind in ("up_conv", "concat_conv"))
    ranges = observe(fused, pictures(1, 2))
    tensors = next(n for n in rewrite(fused, [node.name], ranges).nodes if n.name == node.name).tensors
    names = ("weight_up", "weight_skip") if node.kind == "up_conv" else ("weight_a", "weight_b")
    for weight_name, source in zip(names, node.inputs, strict=True):
        scale = float(np.float32(ranges[source].scale()))
        integers = tensors[weight_name].astype(np.float64)
        step = tensors["scale"].astype(np.float64)
        shape = (1, 1, -1, 1, 1, 1) if weight_name == "weight_up" else (-1, 1, 1, 1)
        error = np.abs(integers * step.reshape(shape) / scale - node.tensors[weight_name])
        assert (error <= 0.5001 * step.reshape(shape) / scale).all()


# -- Winograd's form -------------------------------------------------------------------------------------------------


def cut(value: int) -> int:
    return max(-128, min(127, value))


def four(p: int, q: int, r: int, s: int, rounding: int) -> tuple[int, ...]:
    return cut(p - r), (q + r + rounding) >> 1, cut(r - q), cut(q - s)


def three(p: int, q: int, r: int, phase: int) -> tuple[int, ...]:
    return cut(q - p) if phase else cut(p - q), q, cut(r - q)


def slow_sum(x: Array, weight: Array, row: int, column: int) -> Array:
    """What one pixel of x (h, w, C), whole numbers, gives with weight (O, 4, 4, C): (O)."""
    height, width, channels = x.shape
    share = ((1, 2, 1, 0), (0, 2, -1, -1))
    top, left = row // 2 * 2 - 1, column // 2 * 2 - 1
    total = np.zeros(len(weight), np.int64)
    for channel in range(channels):

        def pixel(y: int, x_: int, channel: int = channel) -> int:
            return int(x[y, x_, channel]) if 0 <= y < height and 0 <= x_ < width else 0

        lines = [four(*(pixel(top + i, left + j) for i in range(4)), rounding=1) for j in range(4)]
        for i in range(4):
            values = four(*(line[i] for line in lines), rounding=0)
            for j in range(4):
                total += share[row % 2][i] * share[column % 2][j] * values[j] * weight[:, i, j, channel].astype(int)
    return total


def slow_up_sum(low: Array, weight: Array, row: int, column: int) -> Array:
    """What low (h, w, C) gives to one pixel at twice its size with weight (2, 2, O, 3, 3, C): (O)."""
    height, width, channels = low.shape
    share = ((1, 1, 0), (0, 1, 1))
    (phase_y, phase_x), (at_y, at_x) = (row % 2, column % 2), (row // 2, column // 2)
    top, left = at_y // 2 * 2 - 1 + phase_y, at_x // 2 * 2 - 1 + phase_x
    total = np.zeros(weight.shape[2], np.int64)
    for channel in range(channels):

        def pixel(y: int, x: int, channel: int = channel) -> int:
            return int(low[y, x, channel]) if 0 <= y < height and 0 <= x < width else 0

        lines = [three(*(pixel(top + i, left + j) for i in range(3)), phase=phase_y) for j in range(3)]
        for i in range(3):
            values = three(*(line[i] for line in lines), phase=phase_x)
            for j in range(3):
                taken = share[at_y % 2][i] * share[at_x % 2][j] * values[j]
                total += taken * weight[phase_y, phase_x, :, i, j, channel].astype(int)
    return total


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (2, 3), (5, 2), (7, 9)])
def test_winograd_sums_are_those_of_the_definition(size: tuple[int, int]) -> None:
    """Of bytes and weights that are nothing like an image, so that most differences are cut."""
    random = np.random.default_rng(size)
    x = random.choice([0, 0, 1, 90, 127, 128, 200, 254, 255], (*size, 3))
    weight, weight_up = (random.integers(-127, 128, shape) for shape in ((2, 4, 4, 3), (2, 2, 2, 3, 3, 3)))
    sums = reference.winograd(x[None].astype(float), weight.astype(float))[0]
    up = reference.winograd_up(x[None].astype(float), weight_up.astype(float))[0]
    assert (sums.shape, up.shape) == ((*size, 2), (2 * size[0], 2 * size[1], 2))
    for row, column in np.ndindex(sums.shape[:2]):
        assert np.array_equal(sums[row, column], slow_sum(x, weight, row, column)), (row, column)
    for row, column in np.ndindex(up.shape[:2]):
        assert np.array_equal(up[row, column], slow_up_sum(x, weight_up, row, column)), (row, column)


def test_winograd_ops_add_biases_and_store_bytes() -> None:
    """Every op of a network, 3x5 pixels at its bottom, from the bytes that it reads."""
    graph = engine_file.read(quantised("plain", 2, winograd=True)).graph
    image = np.random.default_rng(0).integers(0, 2, (12, 20, 1)) * 255
    values = reference.tensors(graph, reference.to_unit(image[None].astype(np.uint8)))
    found = []
    for node in graph.nodes:
        if node.attributes.get("arithmetic") != "int8_winograd":
            continue
        found.append(node.kind)
        inputs = [values[name][0] for name in node.inputs]
        written = values[node.outputs[0]][0]
        factor = node.tensors["scale"] / np.float32(node.attributes["output_scale"])
        ends = [[0, *[1] * (size - 2), 2] for size in written.shape[:2]]  # which bias of three a row or column takes
        for row, column in np.ndindex(written.shape[:2]):
            bias = node.tensors["bias"]
            if node.kind == "up_conv":
                bias = bias[ends[0][row], ends[1][column]]
                total = slow_up_sum(inputs[0], node.tensors["weight_up"], row, column) + bias
                total = total + slow_sum(inputs[1], node.tensors["weight_skip"], row, column)
            else:
                total = slow_sum(inputs[0], node.tensors["weight"], row, column) + bias
            expected = np.clip(np.rint(total.astype(np.float32) * factor), 0, 255)
            assert np.array_equal(written[row, column], expected), (node.name, row, column)
        if len(node.outputs) == 2:
            pairs = written.reshape(written.shape[0] // 2, 2, written.shape[1] // 2, 2, -1)
            assert np.array_equal(values[node.outputs[1]][0], pairs.max(axis=(1, 3)))
    assert found.count("up_conv") == 2
    assert found.count("conv") >= 4


def directly(low: Array, skip: Array, node: Node) -> Array:
    """The sums of an up_conv in floating point without its bias."""
    tensors = node.tensors | {"bias": np.zeros_like(node.tensors["bias"])}
    attributes = node.attributes | {"activation": "none"}
    return reference._OPS["up_conv"](replace(node, attributes=attributes), tensors, low, skip)[0]


@pytest.mark.parametrize("size", [(6, 8), (5, 7)])
def test_winograd_equals_the_direct_form_where_nothing_is_cut_or_rounded(size: tuple[int, int]) -> None:
    """Bytes up to 63, of which a difference of differences fits a signed byte; multiples of 4, which halve twice."""
    random = np.random.default_rng(1)
    node = next(node for node in fuse(graph_of("plain")).nodes if node.kind == "up_conv")
    weight_up, weight = node.tensors["weight_up"], node.tensors["weight_skip"]
    low = random.integers(0, 64, (2, *size, weight_up.shape[-1])).astype(float)
    skip = 4.0 * random.integers(0, 16, (2, 2 * size[0], 2 * size[1], weight.shape[-1]))
    found = reference.winograd(skip, at_positions("weight_skip", weight))
    assert np.allclose(found, reference.correlate(skip, weight, [1] * 4), rtol=0, atol=1e-9)
    found += reference.winograd_up(low, at_positions("weight_up", weight_up))
    assert np.allclose(found, directly(low, skip, node), rtol=0, atol=1e-9)


def test_winograd_is_close_to_the_direct_form_on_smooth_bytes() -> None:
    """Where nothing is cut, what is left of the error are roundings of weights and of the halves of odd sums."""
    rows, columns = np.mgrid[0:31, 0:46]
    random = np.random.default_rng(2)
    waves = [np.sin(rows * fy + columns * fx + phase) for fy, fx, phase in random.uniform(0, [0.25, 0.25, 6], (64, 3))]
    x = np.rint(127 + 120 * np.stack(waves, axis=-1))[None]
    weight = random.normal(0, 1, (16, 3, 3, 64))
    exact = at_positions("weight", weight)
    step = np.abs(exact).max(axis=(1, 2, 3), keepdims=True) / 127
    sums = reference.winograd(x, np.rint(exact / step)) * step[:, 0, 0, 0]
    inside = (slice(None), slice(1, -1), slice(1, -1))  # the edge of such an image is a step of up to 247
    truth = reference.correlate(x, weight, [1] * 4)[inside]
    assert np.linalg.norm(sums[inside] - truth) <= 0.012 * np.linalg.norm(truth)


@pytest.mark.parametrize("winograd", [False, True], ids=["direct", "winograd"])
@pytest.mark.parametrize("kind", ["conv", "up_conv"])
def test_biases_make_up_for_what_rounded_weights_add_on_average(kind: str, winograd: bool) -> None:
    """Of constant inputs, which are their own mean, only the bias is rounded: by half a step of the sum."""
    fused = fuse(graph_of("width24", 1))
    node = next(node for node in fused.nodes if node.kind == kind)
    random = np.random.default_rng(0)
    steps = [0.01 * (index + 1) for index, _ in enumerate(node.inputs)]
    levels = [random.integers(0, 256, fused.shapes[name].channels).astype(np.float64) for name in node.inputs]
    means = [values * step for values, step in zip(levels, steps, strict=True)]
    tensors = _integers(node, steps, means, winograd)
    form = replace(node, attributes=node.attributes | {"arithmetic": "int8_winograd" if winograd else "int8"})
    sizes = [(8, 8)] if kind == "conv" else [(4, 4), (8, 8)]

    def inner(node: Node, tensors: dict[str, Array], inputs: Sequence[Array]) -> Array:
        """The sums of 2x2 pixels in the middle, the four phases of an up_conv among them, on average."""
        spread = [np.broadcast_to(values, (1, *size, len(values))) for values, size in zip(inputs, sizes, strict=True)]
        plain = replace(node, attributes=node.attributes | {"activation": "none"})
        return reference._OPS[kind](plain, tensors, *spread)[0][0, 3:5, 3:5].mean(axis=(0, 1))

    truth = inner(node, node.tensors, means)
    result = inner(form, {name: array.astype(np.float64) for name, array in tensors.items()}, levels)
    assert (np.abs(result - truth) <= 0.5 * tensors["scale"] + 1e-6 * np.abs(truth)).all()


def test_wide_convolutions_take_winograds_form() -> None:
    fused = fused_of("relunet16")
    chosen = candidates(fused)[0]
    narrow = ["encoder0.conv1", "encoder1.conv0", "decoder0.conv0", "decoder0.conv1"]  # conv1 is the head
    wide = [name for name in chosen if name not in narrow]
    assert winograd_ops(fused, chosen) == wide
    assert winograd_ops(fused, narrow) == []
    assert winograd_ops(fuse(graph_of("valid")), candidates(fuse(graph_of("valid")))[0]) == []


def test_both_forms_count_the_same_operations() -> None:
    """So that a rate in operations per second tells which form is the faster one."""
    fused = fused_of("plain")
    chosen, ranges = candidates(fused)[0], observe(fused, pictures(1, 1))
    direct, winograd = (rewrite(fused, chosen, ranges, names) for names in ((), having_winograd_form(fused)))
    assert forms_of(direct) != forms_of(winograd)
    for one, other in zip(direct.nodes, winograd.nodes, strict=True):
        costs = [cost(graph, node, 32, 32) for graph, node in ((direct, one), (winograd, other))]
        assert costs[0].flops == costs[1].flops
        assert (costs[0].weights < costs[1].weights) == (one.attributes != other.attributes)


def forms_of(graph: Graph) -> dict[str, str]:
    return {node.name: node.attributes["arithmetic"] for node in graph.nodes if "arithmetic" in node.attributes}


@pytest.mark.parametrize(
    ("harm", "direct", "kept"),
    [
        ({}, [], []),
        ({"encoder0.conv1 winograd": 0.011, "bottleneck.conv0 winograd": 0.008}, [], []),
        ({"encoder0.conv1 winograd": 0.011, "bottleneck.conv0 winograd": 0.012}, ["bottleneck.conv0"], []),
        (
            {"encoder0.conv1 winograd": 0.5, "decoder0.conv0 winograd": 0.2, "bottleneck.conv0 winograd": 0.01},
            ["encoder0.conv1", "decoder0.conv0"],
            [],
        ),
        ({"encoder0.conv1": 0.3}, "all but encoder0.conv1", ["encoder0.conv1"]),
    ],
)
def test_the_gate_lets_the_direct_form_through_first(
    harm: dict[str, float], direct: list[str] | str, kept: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Agreement as made up of what each op costs in Winograd's form, or in any."""
    monkeypatch.setattr("unet_fast.quantise.WINOGRAD_CHANNELS", 8)
    fused = fused_of("plain")

    def agreement(graph: Graph) -> float:
        costs = [harm.get(name, 0) + harm.get(f"{name} winograd", 0) * (form == "int8_winograd")
                 for name, form in forms_of(graph).items()]  # fmt: skip
        return 1 - sum(costs)

    result = quantise(fused, pictures(1, 1), agreement)
    wide = winograd_ops(fused, candidates(fused)[0])
    if isinstance(direct, str):
        direct = [name for name in wide if name not in kept]
    assert list(result.direct) == direct
    assert set(result.kept) - set(candidates(fused)[1]) == set(kept)
    assert result.agreement >= GATE
    found = forms_of(result.graph)
    assert [name for name in wide if found.get(name) == "int8_winograd"] == [
        name for name in wide if name not in (*direct, *kept)
    ]
    assert result.to_dict()["direct"] == [{"op": name, "why": result.direct[name]} for name in direct]
    for name in direct:
        assert f"agreement {1 - sum(harm.values()):.4f} with all in Winograd's form" in result.direct[name]


def test_steps_are_as_wide_as_agrees_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of tensors that Winograd's form reads, and of what they are pooled to; the others keep theirs."""
    monkeypatch.setattr("unet_fast.quantise.WINOGRAD_CHANNELS", 16)
    fused = fused_of("plain")
    chosen = candidates(fused)[0]
    assert 0 < len(winograd_ops(fused, chosen)) < len(chosen)
    plain = {node.name: node.attributes for node in rewrite(fused, chosen, observe(fused, pictures(1, 1))).nodes}
    for best in WIDENINGS:

        def agreement(graph: Graph, best: float = best) -> float:
            steps = [node.attributes.get("output_scale", 0.0) / plain[node.name].get("output_scale", 1.0)
                     for node in graph.nodes]  # fmt: skip
            return 1.0 if max(steps) == pytest.approx(best) else 0.99

        graph = quantise(fused, pictures(1, 1), agreement).graph
        wide = set(winograd_ops(fused, chosen))
        for node in graph.nodes:
            readers = {reader.name for name in node.outputs for reader in graph.readers(name)}
            expected = best if readers & wide else 1.0
            if "output_scale" in node.attributes:
                assert node.attributes["output_scale"] == pytest.approx(expected * plain[node.name]["output_scale"])


def test_a_range_is_cut_where_outliers_cost_less_than_steps() -> None:
    random = np.random.default_rng(0)
    values = np.abs(random.normal(0, 1, (1, 400, 400, 4)))
    found = Range()
    found.add(values)
    assert values.max() / 255 * 0.5 <= found.scale() <= values.max() / 255 * 1.001
    outlier = Range()
    outlier.add(values)
    outlier.add(np.array([[[[8.0, 0, 0, 0]]]]))
    assert outlier.scale() < 6 / 255
    assert outlier.means[0] == pytest.approx((values[..., 0].sum() + 8) / 160001)
    nothing = Range()
    nothing.add(np.zeros((1, 2, 2, 4)))
    assert nothing.scale() > 0


def test_agreement_is_intersection_over_union() -> None:
    a, b = np.zeros((2, 4, 4), np.uint8)
    assert agreement([a], [b], "sigmoid") == 1
    a[:2], b[1:3] = 255, 255
    assert agreement([a], [b], "sigmoid") == pytest.approx(4 / 12)
    assert agreement([a // 255], [b // 255], "softmax") == pytest.approx((4 / 12 + 4 / 12) / 2)
    values = np.ones((2, 2), np.float32)
    assert agreement([values * 1.5], [values], "identity") == pytest.approx(0.5)


# -- freezing --------------------------------------------------------------------------------------------------------


def frozen(folder: Path, name: str = "regression", seed: int = 0, **options: Any) -> Path:
    spec = SPECS[name]
    options.setdefault("calibration", pictures(spec.in_channels, seed=seed))
    return freeze((spec, random_weights(spec, seed)), folder / f"{name}.unet", precision="int8", **options)


def test_the_file_says_what_was_measured(tmp_path: Path) -> None:
    path = frozen(tmp_path)
    document = engine_file.read_document(path)
    found = document["quantisation"]
    assert document["precision"] == "int8"
    assert found["images"] == 4
    assert GATE <= found["agreement"] <= 1
    assert f"agrees with float32 to {found['agreement']:.4f}" in inspect(path)
    assert path.read_bytes() == frozen(tmp_path, calibration=np.stack(pictures(1))).read_bytes()
    engine = Engine(path)
    assert (engine.device, engine.precision) == ("cpu", "int8")
    result = verify(engine)
    assert result.passed, str(result)
    weights = [array for key, array in engine_file.read(path).tensors.items() if ".weight" in key]
    assert sum(array.dtype == np.int8 for array in weights) >= len(weights) - 2


def test_verify_finds_a_changed_weight(tmp_path: Path) -> None:
    file = engine_file.read(frozen(tmp_path))
    name = next(name for name, array in file.tensors.items() if array.dtype == np.int8)
    file.tensors[name][:] = 0
    path = engine_file.write(tmp_path / "changed.unet", file.document, file.tensors)
    assert not verify(Engine(path)).passed


def test_the_gate_keeps_what_harms_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An op with one enormous weight per channel has no steps left for the others: it, and it alone, is kept."""
    spec = SPECS["plain"]
    weights = random_weights(spec, 3)
    graph = graph_of("plain", 3)
    assert graph.spec == spec
    weight = weights["bottleneck.conv1.weight"]
    weight[:, 0, 0, 0] = 200 * np.abs(weight).max()
    weights["bottleneck.conv0.weight"][0] *= 1e-4  # the input that it multiplies is close to nothing
    weights["bottleneck.conv0.bias"][0] = 0
    path = freeze((spec, weights), tmp_path / "n.unet", precision="int8", calibration=pictures(1))
    found = engine_file.read_document(path)["quantisation"]
    assert "bottleneck.conv1" in [kept["op"] for kept in found["kept"]]
    assert len(found["kept"]) <= 3
    assert found["agreement"] >= GATE
    assert "bottleneck.conv1 in floating point: rounds too coarsely" in inspect(path)
    node = next(node for node in engine_file.read(path).graph.nodes if node.name == "bottleneck.conv1")
    assert "arithmetic" not in node.attributes


def test_the_gate_steps_down_to_the_direct_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate between what the network reaches in one form and in the other is passed by some ops in the direct one."""
    reached = {}
    for channels in (8, 1000):
        monkeypatch.setattr("unet_fast.quantise.WINOGRAD_CHANNELS", channels)
        monkeypatch.setattr("unet_fast.quantise.GATE", 0.0)
        found = engine_file.read_document(frozen(tmp_path))["quantisation"]
        assert found["direct"] == []
        reached[channels] = found["agreement"]
    assert reached[8] < reached[1000]
    monkeypatch.setattr("unet_fast.quantise.WINOGRAD_CHANNELS", 8)
    monkeypatch.setattr("unet_fast.quantise.GATE", (reached[8] + reached[1000]) / 2)
    path = frozen(tmp_path)
    file = engine_file.read(path)
    found = file.document["quantisation"]
    assert found["agreement"] >= found["gate"]
    wide = winograd_ops(fuse(graph_of("regression")), [op["name"] for op in file.document["ops"]])
    direct = [entry["op"] for entry in found["direct"]]
    assert 1 <= len(direct) < len(wide)
    assert set(direct) < set(wide)
    forms = forms_of(file.graph)
    assert [name for name in wide if forms[name] == "int8"] == [name for name in wide if name in direct]
    text = inspect(path)
    assert f"direct      {direct[0]} in the direct form: rounds too coarsely" in text
    assert any("int8 winograd" in line and name in line for name in wide for line in text.splitlines())


def test_a_gate_that_nothing_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unet_fast.quantise.GATE", 1.1)
    with pytest.raises(ValueError, match=r"still agree to less than 1\.1"):
        frozen(tmp_path, "plain")
    assert list(tmp_path.iterdir()) == []


def test_a_network_without_relu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no op of this network can be quantised.*below zero"):
        frozen(tmp_path, "leaky")


def test_interpolating_ops_are_named(tmp_path: Path) -> None:
    path = frozen(tmp_path, "bilinear")
    assert "interpolates what it reads (bilinear)" in inspect(path)


@pytest.mark.parametrize(
    ("calibration", "error", "message"),
    [
        (None, ValueError, "needs calibration="),
        ([], ValueError, "holds no images"),
        (np.zeros((0, 32, 32), np.uint8), ValueError, "holds no images"),
        ([np.zeros((32, 32, 3), np.uint8)], ValueError, "calibration: image 0: .*shape"),
        ([np.zeros((32, 32), np.uint8)] * 3, ValueError, "each of the 3 images is constant"),
        ([np.zeros((32, 32), np.float64)], TypeError, "calibration: image 0: .*float64"),
        ([np.full((32, 32), np.nan, np.float32)], ValueError, "image 0 has NaN"),
        (7, TypeError, "calibration must be a folder, an array of images or a sequence of them, got int"),
    ],
)
def test_unfit_calibration(tmp_path: Path, calibration: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        frozen(tmp_path, "plain", calibration=calibration)
    assert list(tmp_path.iterdir()) == []


def test_calibration_and_targets_that_contradict_the_precision(tmp_path: Path) -> None:
    spec = SPECS["plain"]
    with pytest.raises(ValueError, match="calibration is for precision \"int8\", got precision 'fp16'"):
        freeze((spec, random_weights(spec)), tmp_path / "n.unet", calibration=pictures(1))
    with pytest.raises(UnsupportedError, match="runs on the CPU alone"):
        frozen(tmp_path, "plain", targets=("cpu", "sm_90"))


def test_images_of_any_size_and_type_calibrate() -> None:
    images = calibration_images([pictures(1, 1, 40)[0], np.linspace(0, 1, 900, dtype=np.float32).reshape(30, 30)], 1)
    assert [image.shape for image in images] == [(40, 40, 1), (30, 30, 1)]
    fused = fused_of("plain")
    assert set(observe(fused, images)) >= {name for node in fused.nodes for name in node.outputs}


def test_the_command_line_calibrates_from_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.test_freeze import write_checkpoint

    spec = SPECS["regression"]
    checkpoint = write_checkpoint(tmp_path / "n.safetensors", spec, random_weights(spec))
    folder = tmp_path / "images"
    folder.mkdir()
    for index, image in enumerate(pictures(1)):
        write_image(folder / f"{index}.png", image[:, :, 0])
    arguments = ["freeze", str(checkpoint), "--precision", "int8"]
    assert main([*arguments, "--calibration", str(folder)]) == 0
    assert "int8          agrees with float32 to 0.9" in capsys.readouterr().out
    assert main(arguments) == 1
    assert "needs calibration=" in capsys.readouterr().err
    assert main([*arguments, "--calibration", str(tmp_path / "none")]) == 1
    assert "is not a folder" in capsys.readouterr().err
    tifffile = pytest.importorskip("tifffile", reason="needs tifffile (extra tiff)")
    for pixels in (np.zeros((2, 32, 32), np.uint16), np.full((32, 32), np.nan, np.float32)):
        options = {"planarconfig": "separate"} if pixels.ndim == 3 else {}
        tifffile.imwrite(folder / "z.tif", pixels, photometric="minisblack", **options)
        assert main([*arguments, "--calibration", str(folder)]) == 1
        assert str(folder / "z.tif") in capsys.readouterr().err


# -- opening ---------------------------------------------------------------------------------------------------------


def test_precisions_and_devices_that_an_int8_file_has_not(tmp_path: Path, engine_file: Callable[..., Path]) -> None:
    path = frozen(tmp_path)
    assert Engine(path, precision="int8").precision == "int8"
    for precision in ("float32", "bf16", "fp16"):
        with pytest.raises(UnsupportedError, match="frozen for int8"):
            Engine(path, precision=precision)
    with pytest.raises(UnsupportedError, match="int8 file, which is for the CPU"):
        Engine(path, device="cuda")
    with pytest.raises(UnsupportedError, match="frozen for fp16"):
        Engine(engine_file("plain"), precision="int8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda op: op.pop("arithmetic"), "is I8, expected F32"),
        (lambda op: op.pop("output_scale"), "lacks output_scale"),
        (lambda op: op.update(output_scale=0), "output_scale must be a number"),
        (lambda op: op.update(output_scale=1e-29), "do not fit int32"),
        (lambda op: op.update(activation="none"), "takes the activation relu"),
        (lambda op: op.update(arithmetic="int4"), "must be one of int8, int8_winograd"),
        (lambda op: op.update(arithmetic="int8_winograd"), "weight has shape"),
    ],
)
def test_damaged_ops_are_refused(tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    file = engine_file.read(frozen(tmp_path))
    document = json.loads(json.dumps(file.document))
    change(next(op for op in document["ops"] if op["op"] == "conv" and "arithmetic" in op))
    with pytest.raises(EngineFileError, match=message):
        Engine(engine_file.serialise(document, file.tensors))


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("conv", {"kernel": [1, 1], "padding": [0, 0, 0, 0]}),
        ("conv", {"kernel": [2, 2], "padding": [1, 1, 0, 0]}),
        ("conv", {"kernel": [1, 3], "padding": [0, 1, 0, 1]}),
        ("conv_transpose", {}),
        ("concat_conv", {}),
        ("head", {}),
        ("up_conv", {}),  # without padding
    ],
)
def test_ops_without_winograds_form_are_refused(kind: str, change: dict[str, Any]) -> None:
    """With more positions than taps where the reader looks for them, so that weights are not what is refused."""
    names = {"conv_transpose": "up_relu", "concat_conv": "up_relu", "up_conv": "valid"}
    file = engine_file.read(quantised(names.get(kind, "plain")))
    document = json.loads(json.dumps(file.document))
    op = next(op for op in document["ops"] if op["op"] == kind and "arithmetic" in op)
    op.update(change, arithmetic="int8_winograd")
    for name in [name for name in file.tensors if name.startswith(f"{op['name']}.weight")]:
        *outer, rows, columns, inputs = file.tensors[name].shape
        if kind == "conv":
            rows, columns = op["kernel"]
        if kind in ("conv", "up_conv", "conv_transpose"):
            rows, columns = rows + 1, columns + 1
        file.tensors[name] = np.ones((*outer, rows, columns, inputs), np.int8)
    data = engine_file.serialise(document, file.tensors)
    with pytest.raises(EngineFileError, match="has no Winograd form"):
        _ = engine_file.read(data).graph
    with pytest.raises(EngineFileError, match="has no Winograd form"):
        Engine(data)


@pytest.mark.parametrize("tensor", ["encoder0.conv1.weight", "decoder0.conv0.weight_up", "decoder0.conv0.weight_skip"])
def test_weights_that_do_not_stand_at_positions_are_refused(tensor: str) -> None:
    file = engine_file.read(quantised("plain", winograd=True))
    damaged = np.ascontiguousarray(np.delete(file.tensors[tensor], -1, axis=-2))
    data = engine_file.serialise(file.document, file.tensors | {tensor: damaged})
    with pytest.raises(EngineFileError, match="shape"):
        _ = engine_file.read(data).graph
    with pytest.raises(EngineFileError, match=f"tensor {tensor.split('.')[-1]} has shape"):
        Engine(data)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("bias", 0.5, "whole numbers"),
        ("bias", 2.0**31, "whole numbers"),
        ("scale", -1.0, "do not fit int32"),
        ("scale", 1e30, "do not fit int32"),
    ],
)
def test_damaged_numbers_are_refused(tmp_path: Path, name: str, value: float, message: str) -> None:
    file = engine_file.read(frozen(tmp_path))
    op = next(op["name"] for op in file.document["ops"] if op["op"] == "conv" and "arithmetic" in op)
    file.tensors[f"{op}.{name}"].flat[1] = value
    with pytest.raises(EngineFileError, match=message):
        Engine(engine_file.serialise(file.document, file.tensors))


@pytest.mark.parametrize(
    ("bias", "scale", "output_scale"),
    [
        (129.0, 16647160.0, 1.0),  # 2147483640, which float32 rounds to 2^31
        (2.0**24 + 3, 127.99996, 1.0),  # so does each of its factors
        (0.0, 3e38, 1e-30),  # 0 * infinity
    ],
)
def test_products_that_float32_cannot_keep_below_int32_are_refused(
    bias: float, scale: float, output_scale: float
) -> None:
    """Conversion to int32 makes them negative on some instruction sets and 255 on others."""
    file = engine_file.read(quantised("plain"))
    document = json.loads(json.dumps(file.document))
    op = next(op for op in document["ops"] if op["op"] == "conv" and "arithmetic" in op)
    op["output_scale"] = output_scale
    file.tensors[f"{op['name']}.weight"][:] = 0
    file.tensors[f"{op['name']}.bias"][:] = bias
    file.tensors[f"{op['name']}.scale"][:] = scale
    with pytest.raises(EngineFileError, match="do not fit int32"):
        Engine(engine_file.serialise(document, file.tensors))


def test_a_float_file_cannot_hold_bytes(tmp_path: Path) -> None:
    file = engine_file.read(frozen(tmp_path))
    with pytest.raises(EngineFileError, match="reads or writes uint8 in a file of precision bf16"):
        Engine(engine_file.serialise(file.document | {"precision": "bf16"}, file.tensors))
