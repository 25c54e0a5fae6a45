"""The plain ops that fusing leaves over: pool, upsample, pad, concat, add, activation, affine, l2_normalise, normalise.

Each is bound by memory and written for clarity.  Tensors are (N, H, W, C), y the result.  One program computes BLOCK
consecutive elements (x, c) of one row of one image of y (`concat`: of one input): grid (blocks of a row * H, 1, N).
Only the softmax needs all channels of a pixel at once: there a program has BLOCK pixels.
"""

# The parameters of a Triton function are tensors of its own language, which has no types to write down.
# mypy: disallow-untyped-defs=False

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from . import common
from .launch import Axis, Launch, Site, ceil_div, size_arguments

#: Elements per program: enough loads in flight, and a row of the smallest stage is not mostly idle lanes.
ELEMENTS = 512


@triton.jit
def row_elements(W, C: tl.constexpr, BLOCK: tl.constexpr):
    """Image, row, columns and channels of this program's elements, and which of them exist."""
    blocks = tl.cdiv(W * C, BLOCK)
    element = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    return tl.program_id(2).to(tl.int64), tl.program_id(0) // blocks, element // C, element % C, element < W * C


@triton.jit
def store_row(y, value, n, row, column, c, keep, H, W, C: tl.constexpr):
    tl.store(y + (n * H + row) * W * C + (column * C + c), value.to(y.dtype.element_ty), mask=keep)


@triton.jit
def pool(
    x, y, H, W, H0, W0,
    C: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr, MODE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Maximum or average of each KY x KX window."""
    n, row, column, c, keep = row_elements(W, C, BLOCK)
    common.wait_for_producer(PDL)
    base = x + (n * H0 + row * KY) * W0 * C + (column * KX * C + c)
    best = tl.load(base, mask=keep, other=0.0).to(tl.float32)
    for tap in tl.static_range(1, KY * KX):
        offset = (tap // KX) * W0 * C + (tap % KX) * C
        value = tl.load(base + offset, mask=keep, other=0.0).to(tl.float32)
        if MODE == "max":
            best = tl.maximum(best, value)
        else:
            best += value
    if MODE == "average":
        best /= KY * KX
    store_row(y, best, n, row, column, c, keep, H, W, C)


@triton.jit
def upsample(
    x, y, H, W, H0, W0,
    C: tl.constexpr, SCALE: tl.constexpr, MODE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Nearest, bilinear or bilinear with aligned corners, by SCALE."""
    n, row, column, c, keep = row_elements(W, C, BLOCK)
    common.wait_for_producer(PDL)
    base = x + n * H0 * W0 * C
    if MODE == "nearest":
        value = tl.load(base + (row // SCALE).to(tl.int64) * W0 * C + (column // SCALE * C + c), mask=keep)
    else:
        top, bottom, weight_y = common.interpolation(row, H0, SCALE, MODE == "bilinear_corners")
        left, right, weight_x = common.interpolation(column, W0, SCALE, MODE == "bilinear_corners")
        upper = base + top.to(tl.int64) * W0 * C
        lower = base + bottom.to(tl.int64) * W0 * C
        value = (1.0 - weight_y) * (1.0 - weight_x) * tl.load(upper + left * C + c, mask=keep, other=0.0)
        value += (1.0 - weight_y) * weight_x * tl.load(upper + right * C + c, mask=keep, other=0.0)
        value += weight_y * (1.0 - weight_x) * tl.load(lower + left * C + c, mask=keep, other=0.0)
        value += weight_y * weight_x * tl.load(lower + right * C + c, mask=keep, other=0.0)
    store_row(y, value, n, row, column, c, keep, H, W, C)


@triton.jit
def pad(
    x, y, H, W, H0, W0, C: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """Zeros around x; negative numbers crop."""
    n, row, column, c, keep = row_elements(W, C, BLOCK)
    common.wait_for_producer(PDL)
    row_0 = row - TOP
    column_0 = column - LEFT
    columns = tl.where((row_0 >= 0) & (row_0 < H0), W0, 0)
    inside = keep & (column_0 >= 0) & (column_0 < columns)
    value = tl.load(x + (n * H0 + row_0) * W0 * C + (column_0 * C + c), mask=inside, other=0.0)
    store_row(y, value, n, row, column, c, keep, H, W, C)


@triton.jit
def concat(
    x, y, H, W, C: tl.constexpr, C_OUT: tl.constexpr, FIRST: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """One input's C channels to channels FIRST ... of y, which has O."""
    n, row, column, c, keep = row_elements(W, C, BLOCK)
    common.wait_for_producer(PDL)
    value = tl.load(x + (n * H + row) * W * C + (column * C + c), mask=keep)
    store_row(y, value, n, row, column, FIRST + c, keep, H, W, C_OUT)


@triton.jit
def add(
    a, b, y, H, W, C: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """act(a + b)"""
    n, row, column, c, keep = row_elements(W, C, BLOCK)
    common.wait_for_producer(PDL)
    offset = (n * H + row) * W * C + (column * C + c)
    value = tl.load(a + offset, mask=keep, other=0.0).to(tl.float32) + tl.load(b + offset, mask=keep, other=0.0)
    store_row(y, common.activate(value, ACTIVATION, SLOPE), n, row, column, c, keep, H, W, C)


@triton.jit
def activation(
    x, y, H, W, C: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """act(x), each element by itself."""
    n, row, column, c, keep = row_elements(W, C, BLOCK)
    common.wait_for_producer(PDL)
    value = tl.load(x + (n * H + row) * W * C + (column * C + c), mask=keep, other=0.0).to(tl.float32)
    store_row(y, common.activate(value, ACTIVATION, SLOPE), n, row, column, c, keep, H, W, C)


@triton.jit
def softmax(x, y, H, W, C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """exp(x[c] - max) / sum over the channels of each pixel."""
    blocks = tl.cdiv(W, BLOCK)
    n = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) // blocks
    column = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    c = tl.arange(0, BLOCK_C)
    inside = (column < W)[:, None] & (c < C)[None, :]
    offset = (n * H + row) * W * C + column[:, None] * C + c[None, :]
    common.wait_for_producer(PDL)
    value = tl.load(x + offset, mask=inside, other=float("-inf")).to(tl.float32)
    # Columns beyond the row have nothing but -inf; 0 in its place keeps their (unused) quotient finite.
    value = tl.exp(value - tl.maximum(tl.max(value, axis=1), -1e38)[:, None])
    # 1e-38 is no normal float32, and makes Triton 3.6 divide in float64.
    value /= tl.maximum(tl.sum(value, axis=1), 1e-37)[:, None]
    tl.store(y + offset, value.to(y.dtype.element_ty), mask=inside)


@triton.jit
def affine(
    x, scale, shift, y, H, W,
    C: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """act(x * scale[c] + shift[c])"""
    n, row, column, c, keep = row_elements(W, C, BLOCK)
    scales = tl.load(scale + c)
    shifts = tl.load(shift + c)
    common.wait_for_producer(PDL)
    value = tl.load(x + (n * H + row) * W * C + (column * C + c), mask=keep, other=0.0).to(tl.float32)
    store_row(y, common.activate(value * scales + shifts, ACTIVATION, SLOPE), n, row, column, c, keep, H, W, C)


@triton.jit
def l2_normalise(x, y, H, W, C: tl.constexpr, MODE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """x over the Euclidean norm of its column or row, of each channel by itself; a line of zeros stays.

    Every program adds up the whole line for each of its elements: more loads, all from cache, but no second step.
    """
    n, row, column, c, keep = row_elements(W, C, BLOCK)
    common.wait_for_producer(PDL)
    squares = tl.zeros([BLOCK], tl.float32)
    if MODE == "columns":
        for other in range(H):
            value = tl.load(x + (n * H + other) * W * C + (column * C + c), mask=keep, other=0.0).to(tl.float32)
            squares += value * value
    else:
        for other in range(W):
            value = tl.load(x + (n * H + row) * W * C + (other * C + c), mask=keep, other=0.0).to(tl.float32)
            squares += value * value
    value = tl.load(x + (n * H + row) * W * C + (column * C + c), mask=keep, other=0.0).to(tl.float32)
    store_row(y, value / tl.where(squares > 0, tl.sqrt(squares), 1.0), n, row, column, c, keep, H, W, C)


@triton.jit
def normalise(
    image, transform, y, H, W, stride_image, stride_row, stride_pixel, stride_channel,
    C: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """image * scale[c] + shift[c]: the caller's pixels as the network's input."""
    n, row, column, c, keep = row_elements(W, C, BLOCK)
    common.wait_for_producer(PDL)
    offset = n * stride_image + row * stride_row + column * stride_pixel + c * stride_channel
    value = tl.load(image + offset, mask=keep, other=0).to(tl.float32)
    value = value * tl.load(transform + n * 8 + c) + tl.load(transform + n * 8 + 4 + c)
    store_row(y, value, n, row, column, c, keep, H, W, C)


def candidates(site: Site, capability: int, count: int) -> list[list[Launch]]:
    """For each step of a plain op, its only launch."""
    return _STEPS[site.op["op"]](site)


def _rows(channels: int) -> tuple[Axis, Axis, Axis]:
    return [{"ceil": ["W", channels], "by": ELEMENTS}, "H"], [], ["N"]


def _launch(site: Site, kernel: Any, channels: int, inputs: int = 0, /, **named: Any) -> Launch:
    """A launch over the rows of y; `named` holds further arguments (dicts) and constants."""
    arguments = {name: value for name, value in named.items() if isinstance(value, dict)}
    constants = {name: value for name, value in named.items() if not isinstance(value, dict)}
    return Launch(
        name=f"{ELEMENTS}",
        kernel=kernel,
        arguments={"y": site.buffer("outputs"), **arguments, **size_arguments(inputs)},
        constants={"C": channels, "BLOCK": ELEMENTS, **constants},
        grid=_rows(channels),
    )


def _pool(site: Site) -> list[list[Launch]]:
    ky, kx = site.op["kernel"]
    x, mode = site.buffer("inputs"), site.op["mode"]
    return [[_launch(site, pool, site.channels("outputs"), 1, x=x, KY=ky, KX=kx, MODE=mode)]]


def _upsample(site: Site) -> list[list[Launch]]:
    x, mode, scale = site.buffer("inputs"), site.op["mode"], site.op["scale"]
    return [[_launch(site, upsample, site.channels("outputs"), 1, x=x, SCALE=scale, MODE=mode)]]


def _pad(site: Site) -> list[list[Launch]]:
    top, left, _, _ = site.op["padding"]
    return [[_launch(site, pad, site.channels("outputs"), 1, x=site.buffer("inputs"), TOP=top, LEFT=left)]]


def _concat(site: Site) -> list[list[Launch]]:
    total, first, steps = site.channels("outputs"), 0, []
    for position in range(len(site.op["inputs"])):
        channels = site.channels("inputs", position)
        steps.append([_launch(site, concat, channels, x=site.buffer("inputs", position), C_OUT=total, FIRST=first)])
        first += channels
    return steps


def _add(site: Site) -> list[list[Launch]]:
    a, b = site.buffer("inputs", 0), site.buffer("inputs", 1)
    return [[_launch(site, add, site.channels("outputs"), a=a, b=b, **site.activation())]]


def _activation(site: Site) -> list[list[Launch]]:
    channels, x = site.channels("outputs"), site.buffer("inputs")
    if site.op["activation"] != "softmax":
        return [[_launch(site, activation, channels, x=x, **site.activation())]]
    block_c = 1 << (channels - 1).bit_length()
    block = max(1, min(64, 4096 // block_c))
    launch = Launch(
        name=f"{block}",
        kernel=softmax,
        arguments={"x": x, "y": site.buffer("outputs"), **size_arguments(0)},
        constants={"C": channels, "BLOCK_C": block_c, "BLOCK": block},
        grid=([ceil_div("W", block), "H"], [], ["N"]),
    )
    return [[launch]]


def _affine(site: Site) -> list[list[Launch]]:
    channels = site.channels("outputs")
    scale, shift = (site.exact(name, (channels,), (channels,)) for name in ("scale", "shift"))
    return [[_launch(site, affine, channels, x=site.buffer("inputs"), scale=scale, shift=shift, **site.activation())]]


def _l2_normalise(site: Site) -> list[list[Launch]]:
    x, mode = site.buffer("inputs"), site.op["mode"]
    return [[_launch(site, l2_normalise, site.channels("outputs"), x=x, MODE=mode)]]


def _normalise(site: Site) -> list[list[Launch]]:
    return [[_launch(site, normalise, site.channels("outputs"), **site.image_arguments())]]


_STEPS = {
    "pool": _pool,
    "upsample": _upsample,
    "pad": _pad,
    "concat": _concat,
    "add": _add,
    "activation": _activation,
    "affine": _affine,
    "l2_normalise": _l2_normalise,
    "normalise": _normalise,
}
