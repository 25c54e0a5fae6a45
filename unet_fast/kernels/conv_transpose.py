"""conv_transpose: y[oy, ox] = act(bias + sum of weight[:, ky, kx, :] . x[iy, ix] where iy * stride + ky = oy + top).

    x (N, H0, W0, C)  ->  y (N, H, W, O)

A plain op: the fuser turns the usual 2x2 stride-2 form into `up_conv`.  Pixels of one phase oy % stride see every
stride-th tap of the kernel, so each phase is an ordinary convolution.  One program: one tile of TILE_H x TILE_W
pixels of one phase of one image, BLOCK_N output channels.  Grid: (tiles, channel blocks, N * phases).
"""

# The parameters of a Triton function are tensors of its own language, which has no types to write down.
# mypy: disallow-untyped-defs=False

from __future__ import annotations

import triton
import triton.language as tl

from . import common
from .launch import Launch, Site, size_arguments, tiles
from .tilings import padded_channels


@triton.jit
def conv_transpose(
    x, weight, bias, y,
    H, W, H0, W0,
    C: tl.constexpr, C_OUT: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr,
    PAD_TOP: tl.constexpr, PAD_LEFT: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    DOT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    # ---- ids
    n_image = tl.program_id(2) // (SY * SX)
    phase_y = tl.program_id(2) % (SY * SX) // SX
    phase_x = tl.program_id(2) % SX

    # ---- offsets: the tile counts in strides, oy = stride * (top + ...) + phase
    top, left = common.tile_origin(tl.program_id(0), (W + SX - 1) // SX, TILE_H, TILE_W)
    in_tile_y, in_tile_x = common.tile_pixels(TILE_H, TILE_W, False)
    pixel_y = (top + in_tile_y) * SY + phase_y
    pixel_x = (left + in_tile_x) * SX + phase_x
    first_row = top * SY + phase_y
    base_row = (first_row + PAD_TOP) // SY
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    bias_row = tl.load(bias + n)
    common.wait_for_producer(PDL)

    # ---- sum over the taps of this phase
    TAPS_Y: tl.constexpr = (KY + SY - 1) // SY
    TAPS_X: tl.constexpr = (KX + SX - 1) // SX
    base = x + (n_image.to(tl.int64) * H0 + base_row) * W0 * C
    total = tl.zeros((TILE_H * TILE_W, BLOCK_N), tl.float32)
    for tap in range(TAPS_Y * TAPS_X):
        tap_y = tap // TAPS_X
        tap_x = tap % TAPS_X
        ky = (phase_y + PAD_TOP) % SY + SY * tap_y
        kx = (phase_x + PAD_LEFT) % SX + SX * tap_x
        row = (pixel_y + PAD_TOP) // SY - tap_y
        column = (pixel_x + PAD_LEFT) // SX - tap_x
        inside = (row >= 0) & (row < H0) & (column >= 0) & (column < W0)
        # A phase that this tap does not meet reads no channel.
        channels = tl.where((ky < KY) & (kx < KX), C, 0)
        for first in range(0, C, BLOCK_K):
            c = first + k
            window = tl.load(
                base + (((row - base_row) * W0 + column) * C)[:, None] + c[None, :],
                mask=inside[:, None] & (c < channels)[None, :],
                other=0.0,
            )
            weights = tl.load(
                weight + (n[None, :] * (KY * KX) + ky * KX + kx) * C + c[:, None],
                mask=(n < C_OUT)[None, :] & (c < channels)[:, None],
                other=0.0,
            )
            total = tl.dot(window, weights, total, input_precision=DOT)

    # ---- epilogue and store
    keep = (pixel_y < H) & (pixel_x < W)
    value = common.activate(total + bias_row[None, :], ACTIVATION, SLOPE)
    common.store_pixels(y, value, pixel_y, pixel_x, first_row, n, n_image, keep, H, W, C_OUT)


def candidates(site: Site, capability: int, count: int) -> list[list[Launch]]:
    """For the one step of a `conv_transpose`."""
    outputs, *kernel, inputs = site.shape("weight")
    rows = padded_channels(outputs)
    block_n = min(rows, 64)
    top, left, _, _ = site.op["padding"]
    (stride_y, stride_x), (tile_h, tile_w) = site.op["stride"], (8, 8)
    covered = tiles("H", "W", stride_y * tile_h, stride_x * tile_w)
    launch = Launch(
        name=f"{tile_h}x{tile_w} n{block_n}",
        kernel=conv_transpose,
        arguments={
            "x": site.buffer("inputs"),
            "weight": site.weight("weight", site.shape("weight"), site.shape("weight")),
            "bias": site.exact("bias", (outputs,), (rows,)),
            "y": site.buffer("outputs"),
            **size_arguments(1),
        },
        constants={
            "C": inputs, "C_OUT": outputs, "KY": kernel[0], "KX": kernel[1], "SY": stride_y, "SX": stride_x,
            "PAD_TOP": top, "PAD_LEFT": left, "DOT": site.dot(), "TILE_H": tile_h, "TILE_W": tile_w,
            "BLOCK_N": block_n, "BLOCK_K": 32 if inputs > 16 else 16, **site.activation(),
        },
        grid=(covered, [rows // block_n], ["N", stride_y * stride_x]),
        stages=3,
    )  # fmt: skip
    return [[launch]]
