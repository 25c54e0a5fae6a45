"""conv: y = act(bias + sum over dy, dx, c of weight[o, dy, dx, c] * x[y - top + dy, x - left + dx, c]).

    x (N, H0, W0, C)  ->  y (N, H, W, O)  and, with POOL, pooled (N, H / 2, W / 2, O) = 2x2 maximum of y

One program: one tile of TILE_H x TILE_W pixels of one image, BLOCK_N output channels, one of SPLIT parts of the sum.
Grid: (tiles, channel blocks * SPLIT, N).  Bias, activation and pooling are fused behind the sum.
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
def conv(
    x, weight, bias, y, pooled, partials, counters,
    H, W, H0, W0,
    C: tl.constexpr, C_OUT: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr, K_PADDED: tl.constexpr,
    PAD_TOP: tl.constexpr, PAD_LEFT: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, POOL: tl.constexpr,
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
    in_tile_y, in_tile_x = common.tile_pixels(TILE_H, TILE_W, POOL)
    pixel_y = top + in_tile_y
    pixel_x = left + in_tile_x
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    bias_row = tl.load(bias + n)
    common.wait_for_producer(PDL)

    # ---- sum
    STEPS: tl.constexpr = (KY * KX * C + BLOCK_K - 1) // BLOCK_K
    total = tl.zeros((M, BLOCK_N), tl.float32)
    total = common.accumulate(
        total, x, weight, n, pixel_y - PAD_TOP, pixel_x - PAD_LEFT, top - PAD_TOP, n_image, H0, W0,
        STEPS * split // SPLIT, STEPS * (split + 1) // SPLIT,
        C, KX, KY * KX * C, K_PADDED, BLOCK_K, "none", DOT,
    )  # fmt: skip

    # ---- epilogue and store
    if SPLIT == 1:
        common.finish(
            total, bias_row, y, pooled, top, left, pixel_y, pixel_x, n, n_image, H, W,
            C_OUT, ACTIVATION, SLOPE, POOL, TILE_H, TILE_W,
        )  # fmt: skip
    else:
        part = (n_image * tl.num_programs(0) + tile) * (tl.num_programs(1) // SPLIT) + block
        if common.last_arriver(total, partials, counters, part, split, SPLIT, M, BLOCK_N):
            common.finish(
                common.sum_parts(partials, part, SPLIT, M, BLOCK_N),
                bias_row, y, pooled, top, left, pixel_y, pixel_x, n, n_image, H, W,
                C_OUT, ACTIVATION, SLOPE, POOL, TILE_H, TILE_W,
            )  # fmt: skip


def candidates(site: Site, capability: int, count: int) -> list[list[Launch]]:
    """For the one step of a `conv`, the launches that are worth trying on a GPU of this capability."""
    outputs, *kernel, inputs = site.shape("weight")
    k = kernel[0] * kernel[1] * inputs
    rows, columns = padded_channels(outputs), padded_k(k, inputs)
    top, left, _, _ = site.op["padding"]
    pool = len(site.op["outputs"]) == 2
    launches = []
    for tiling in tilings(
        capability, site.element, *site.nominal_size("outputs"), 1, outputs, [(inputs, k // inputs)], count
    ):
        blocks = rows // tiling.block_n
        covered = tiles("H", "W", tiling.tile_h, tiling.tile_w)
        launches.append(
            Launch(
                name=tiling.name,
                kernel=conv,
                arguments={
                    "x": site.buffer("inputs"),
                    "weight": site.weight("weight", (outputs, k), (rows, columns)),
                    "bias": site.exact("bias", (outputs,), (rows,)),
                    "y": site.buffer("outputs", 0),
                    **({"pooled": site.buffer("outputs", 1)} if pool else {}),
                    **tiling.split_scratch(["N", *covered, blocks]),
                    **size_arguments(1),
                },
                constants={
                    "C": inputs, "C_OUT": outputs, "KY": kernel[0], "KX": kernel[1], "K_PADDED": columns,
                    "PAD_TOP": top, "PAD_LEFT": left, "POOL": pool, "DOT": site.dot(),
                    **site.activation(), **tiling.constants(),
                },
                grid=(covered, [blocks, tiling.split], ["N"]),
                warps=tiling.warps,
                stages=tiling.stages,
            )
        )  # fmt: skip
    return [launches]
