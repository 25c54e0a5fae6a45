"""concat_conv: y = act(conv(concat(up(a), crop(b))) + bias) without the upsampled or the concatenated tensor.

    a (N, H0, W0, C_A), x2 upsampled on the way in unless UPSAMPLE is "none"; b (N, H1, W1, C_B)  ->  y (N, H, W, O)

UPSAMPLE: "none", "nearest", "bilinear", "bilinear_corners" (align_corners).  One program: one tile of TILE_H x TILE_W
pixels of one image, BLOCK_N output channels, one of SPLIT parts of the sum.  The steps over K run through `a` first,
then `b`.  Grid: (tiles, channel blocks * SPLIT, N).
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
def concat_conv(
    a, b, weight_a, weight_b, bias, y, partials, counters,
    H, W, H0, W0, H1, W1,
    C_A: tl.constexpr, C_B: tl.constexpr, C_OUT: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr,
    K_A: tl.constexpr, K_B: tl.constexpr, UPSAMPLE: tl.constexpr,
    PAD_TOP: tl.constexpr, PAD_LEFT: tl.constexpr, CROP_TOP: tl.constexpr, CROP_LEFT: tl.constexpr,
    ACTIVATION: tl.constexpr, SLOPE: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT: tl.constexpr,
    DOT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    # ---- ids
    M: tl.constexpr = TILE_H * TILE_W
    tile = tl.program_id(0)
    block = tl.program_id(1) // SPLIT
    split = tl.program_id(1) % SPLIT
    n_image = tl.program_id(2)

    # ---- offsets
    top, left = common.tile_origin(tile, W, TILE_H, TILE_W)
    in_tile_y, in_tile_x = common.tile_pixels(TILE_H, TILE_W, False)
    pixel_y = top + in_tile_y
    pixel_x = left + in_tile_x
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    bias_row = tl.load(bias + n)
    common.wait_for_producer(PDL)

    # ---- sum
    STEPS_A: tl.constexpr = (KY * KX * C_A + BLOCK_K - 1) // BLOCK_K
    STEPS_B: tl.constexpr = (KY * KX * C_B + BLOCK_K - 1) // BLOCK_K
    first = (STEPS_A + STEPS_B) * split // SPLIT
    last = (STEPS_A + STEPS_B) * (split + 1) // SPLIT
    total = tl.zeros((M, BLOCK_N), tl.float32)
    total = common.accumulate(
        total, a, weight_a, n, pixel_y - PAD_TOP, pixel_x - PAD_LEFT, top - PAD_TOP, n_image, H0, W0,
        tl.minimum(first, STEPS_A), tl.minimum(last, STEPS_A),
        C_A, KX, KY * KX * C_A, K_A, BLOCK_K, UPSAMPLE, DOT,
    )  # fmt: skip
    total = common.accumulate(
        total, b, weight_b, n, pixel_y - PAD_TOP + CROP_TOP, pixel_x - PAD_LEFT + CROP_LEFT, top - PAD_TOP + CROP_TOP,
        n_image, H1, W1, tl.maximum(first - STEPS_A, 0), tl.maximum(last - STEPS_A, 0),
        C_B, KX, KY * KX * C_B, K_B, BLOCK_K, "none", DOT,
    )  # fmt: skip

    # ---- epilogue and store
    if SPLIT == 1:
        common.finish(
            total, bias_row, y, None, top, left, pixel_y, pixel_x, n, n_image, H, W,
            C_OUT, ACTIVATION, SLOPE, False, TILE_H, TILE_W,
        )  # fmt: skip
    else:
        part = (n_image * tl.num_programs(0) + tile) * (tl.num_programs(1) // SPLIT) + block
        if common.last_arriver(total, partials, counters, part, split, SPLIT, M, BLOCK_N):
            common.finish(
                common.sum_parts(partials, part, SPLIT, M, BLOCK_N),
                bias_row, y, None, top, left, pixel_y, pixel_x, n, n_image, H, W,
                C_OUT, ACTIVATION, SLOPE, False, TILE_H, TILE_W,
            )  # fmt: skip


def candidates(site: Site, capability: int, count: int) -> list[list[Launch]]:
    """For the one step of a `concat_conv`."""
    outputs, *kernel, channels_a = site.shape("weight_a")
    channels_b = site.shape("weight_b")[3]
    taps = kernel[0] * kernel[1]
    rows, k_a, k_b = (
        padded_channels(outputs),
        padded_k(taps * channels_a, channels_a),
        padded_k(taps * channels_b, channels_b),
    )
    top, left, _, _ = site.op["padding"]
    crop_top, crop_left = site.op["crop"]
    sources = [(channels_a, taps), (channels_b, taps)]
    launches = []
    for tiling in tilings(capability, site.element, *site.nominal_size("outputs"), 1, outputs, sources, count):
        blocks = rows // tiling.block_n
        covered = tiles("H", "W", tiling.tile_h, tiling.tile_w)
        launches.append(
            Launch(
                name=tiling.name,
                kernel=concat_conv,
                arguments={
                    "a": site.buffer("inputs", 0),
                    "b": site.buffer("inputs", 1),
                    "weight_a": site.weight("weight_a", (outputs, taps * channels_a), (rows, k_a)),
                    "weight_b": site.weight("weight_b", (outputs, taps * channels_b), (rows, k_b)),
                    "bias": site.exact("bias", (outputs,), (rows,)),
                    "y": site.buffer("outputs"),
                    **tiling.split_scratch(["N", *covered, blocks]),
                    **size_arguments(2),
                },
                constants={
                    "C_A": channels_a, "C_B": channels_b, "C_OUT": outputs, "KY": kernel[0], "KX": kernel[1],
                    "K_A": k_a, "K_B": k_b, "UPSAMPLE": site.op["upsample"], "PAD_TOP": top, "PAD_LEFT": left,
                    "CROP_TOP": crop_top, "CROP_LEFT": crop_left, "DOT": site.dot(),
                    **site.activation(), **tiling.constants(),
                },
                grid=(covered, [blocks, tiling.split], ["N"]),
                warps=tiling.warps,
                stages=tiling.stages,
            )
        )  # fmt: skip
    return [launches]
