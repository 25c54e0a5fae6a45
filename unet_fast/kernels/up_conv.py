"""up_conv: x2 upsampling of `low` (transposed convolution or nearest), concat with `skip` and 3x3 convolution as one.

    Y = y + 1 - p, phase_y = Y % 2, and the same in x:
    y[y, x] = act(bias[r, c]
                  + sum over a, b of weight_up[phase_y, phase_x, :, a, b, :] . low[Y // 2 - 1 + phase_y + a, ...]
                  + sum over dy, dx of weight_skip[:, dy, dx, :] . skip[y - p + dy + crop_top, ...])

    low (N, H0, W0, C_LOW), skip (N, H1, W1, C_SKIP)  ->  y (N, H, W, O), H = 2 H0 - 2 + 2 p

p is 0 or 1.  bias (3, 3, O): r is 0 on the first row, 2 on the last, 1 between (always 1 for p = 0); c likewise.

The pixels of one phase are a convolution of `low` with four taps: a program computes a tile of Y // 2, X // 2 of one
phase, BLOCK_N output channels, one of SPLIT parts of the sum.  The steps over K run through `low` first, then `skip`.
Grid: (tiles, channel blocks * SPLIT, N * 4 phases).
"""

# The parameters of a Triton function are tensors of its own language, which has no types to write down.
# mypy: disallow-untyped-defs=False

from __future__ import annotations

import triton
import triton.language as tl

from . import common
from .launch import Launch, Site, size_arguments, tiles
from .tilings import padded_channels, padded_k, tilings


@triton.jit
def border_bias(bias, y, x, n, H, W, C_OUT: tl.constexpr, PADDING: tl.constexpr):
    """Bias of each pixel and channel, float32 (M, N), or (1, N) without padding."""
    if PADDING:
        row = tl.where(y == 0, 0, tl.where(y == H - 1, 2, 1))
        column = tl.where(x == 0, 0, tl.where(x == W - 1, 2, 1))
        return tl.load(bias + ((row * 3 + column) * C_OUT)[:, None] + n[None, :])
    else:
        return tl.load(bias + 4 * C_OUT + n)[None, :]


@triton.jit
def up_conv(
    low, skip, weight_up, weight_skip, bias, y, partials, counters,
    H, W, H0, W0, H1, W1,
    C_LOW: tl.constexpr, C_SKIP: tl.constexpr, C_OUT: tl.constexpr, ROWS: tl.constexpr,
    K_LOW: tl.constexpr, K_SKIP: tl.constexpr, PADDING: tl.constexpr, CROP_TOP: tl.constexpr, CROP_LEFT: tl.constexpr,
    ACTIVATION: tl.constexpr, SLOPE: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT: tl.constexpr,
    DOT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    # ---- ids
    M: tl.constexpr = TILE_H * TILE_W
    tile = tl.program_id(0)
    block = tl.program_id(1) // SPLIT
    split = tl.program_id(1) % SPLIT
    n_image = tl.program_id(2) // 4
    phase_y = tl.program_id(2) % 4 // 2
    phase_x = tl.program_id(2) % 2

    # ---- offsets: half_y = Y // 2
    top, left = common.tile_origin(tile, W0, TILE_H, TILE_W)
    in_tile_y, in_tile_x = common.tile_pixels(TILE_H, TILE_W, False)
    half_y = top + in_tile_y
    half_x = left + in_tile_x
    pixel_y = 2 * half_y + phase_y - 1 + PADDING
    pixel_x = 2 * half_x + phase_x - 1 + PADDING
    first_row = 2 * top + phase_y - 1 + PADDING
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    common.wait_for_producer(PDL)

    # ---- sum
    STEPS_LOW: tl.constexpr = (4 * C_LOW + BLOCK_K - 1) // BLOCK_K
    STEPS_SKIP: tl.constexpr = (9 * C_SKIP + BLOCK_K - 1) // BLOCK_K
    first = (STEPS_LOW + STEPS_SKIP) * split // SPLIT
    last = (STEPS_LOW + STEPS_SKIP) * (split + 1) // SPLIT
    total = tl.zeros((M, BLOCK_N), tl.float32)
    total = common.accumulate(
        total, low, weight_up, (phase_y * 2 + phase_x) * ROWS + n, half_y - 1 + phase_y, half_x - 1 + phase_x,
        top - 1 + phase_y, n_image, H0, W0, tl.minimum(first, STEPS_LOW), tl.minimum(last, STEPS_LOW),
        C_LOW, 2, 4 * C_LOW, K_LOW, BLOCK_K, "none", DOT,
    )  # fmt: skip
    total = common.accumulate(
        total, skip, weight_skip, n, pixel_y - PADDING + CROP_TOP, pixel_x - PADDING + CROP_LEFT,
        first_row - PADDING + CROP_TOP, n_image, H1, W1,
        tl.maximum(first - STEPS_LOW, 0), tl.maximum(last - STEPS_LOW, 0),
        C_SKIP, 3, 9 * C_SKIP, K_SKIP, BLOCK_K, "none", DOT,
    )  # fmt: skip

    # ---- epilogue and store
    keep = (pixel_y >= 0) & (pixel_y < H) & (pixel_x >= 0) & (pixel_x < W) & (half_y < H0) & (half_x < W0)
    if SPLIT == 1:
        value = total + border_bias(bias, pixel_y, pixel_x, n, H, W, ROWS, PADDING)
        value = common.activate(value, ACTIVATION, SLOPE)
        common.store_pixels(y, value, pixel_y, pixel_x, first_row, n, n_image, keep, H, W, C_OUT)
    else:
        part = (tl.program_id(2) * tl.num_programs(0) + tile) * (tl.num_programs(1) // SPLIT) + block
        if common.last_arriver(total, partials, counters, part, split, SPLIT, M, BLOCK_N):
            value = common.sum_parts(partials, part, SPLIT, M, BLOCK_N)
            value += border_bias(bias, pixel_y, pixel_x, n, H, W, ROWS, PADDING)
            value = common.activate(value, ACTIVATION, SLOPE)
            common.store_pixels(y, value, pixel_y, pixel_x, first_row, n, n_image, keep, H, W, C_OUT)


def candidates(site: Site, capability: int, count: int) -> list[list[Launch]]:
    """For the one step of an `up_conv`."""
    _, _, outputs, _, _, low = site.shape("weight_up")
    skip = site.shape("weight_skip")[3]
    rows, k_low, k_skip = padded_channels(outputs), padded_k(4 * low, low), padded_k(9 * skip, skip)
    height, width = site.nominal_size("inputs", 0)
    crop_top, crop_left = site.op["crop"]
    launches = []
    for tiling in tilings(capability, site.element, height, width, 4, outputs, [(low, 4), (skip, 9)], count):
        blocks = rows // tiling.block_n
        covered = tiles("H0", "W0", tiling.tile_h, tiling.tile_w)
        launches.append(
            Launch(
                name=tiling.name,
                kernel=up_conv,
                arguments={
                    "low": site.buffer("inputs", 0),
                    "skip": site.buffer("inputs", 1),
                    "weight_up": site.weight("weight_up", (4, outputs, 4 * low), (4, rows, k_low)),
                    "weight_skip": site.weight("weight_skip", (outputs, 9 * skip), (rows, k_skip)),
                    "bias": site.exact("bias", (9, outputs), (9, rows)),
                    "y": site.buffer("outputs"),
                    **tiling.split_scratch(["N", 4, *covered, blocks]),
                    **size_arguments(2),
                },
                constants={
                    "C_LOW": low, "C_SKIP": skip, "C_OUT": outputs, "ROWS": rows, "K_LOW": k_low, "K_SKIP": k_skip,
                    "PADDING": site.op["padding"][0], "CROP_TOP": crop_top, "CROP_LEFT": crop_left, "DOT": site.dot(),
                    **site.activation(), **tiling.constants(),
                },
                grid=(covered, [blocks, tiling.split], ["N", 4]),
                warps=tiling.warps,
                stages=tiling.stages,
            )
        )  # fmt: skip
    return [launches]
