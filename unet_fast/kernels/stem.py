"""stem: `conv` of the caller's image, normalised on the way in.

    v = image[y, x, c] * scale[c] + shift[c] inside the image, 0 outside of it
    y = act(bias + sum over dy, dx, c of weight[o, dy, dx, c] * v[y - top + dy, x - left + dx, c])

    image (N, H0, W0, C), uint8, uint16 or float32  ->  y (N, H, W, O) [, pooled (N, H / 2, W / 2, O)]

One program: one tile of TILE_H x TILE_W pixels of one image, BLOCK_N output channels.  All taps (at most 64 values
per pixel) are gathered element by element and multiplied in one go; padding is zero after normalisation, which is why
the normalisation is not folded into the weights.  Grid: (tiles, channel blocks, N).
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
def stem(
    image, transform, weight, bias, y, pooled,
    H, W, H0, W0, stride_image, stride_row, stride_pixel, stride_channel,
    C: tl.constexpr, C_OUT: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr, K_PADDED: tl.constexpr,
    PAD_TOP: tl.constexpr, PAD_LEFT: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, POOL: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_N: tl.constexpr, DOT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    # ---- ids
    n_image = tl.program_id(2)
    top, left = common.tile_origin(tl.program_id(0), W, TILE_H, TILE_W)

    # ---- constants, while the producer may still run
    in_tile_y, in_tile_x = common.tile_pixels(TILE_H, TILE_W, POOL)
    pixel_y = top + in_tile_y
    pixel_x = left + in_tile_x
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, K_PADDED)
    weights = tl.load(weight + n[None, :] * K_PADDED + k[:, None])
    bias_row = tl.load(bias + n)
    common.wait_for_producer(PDL)

    # ---- gather and normalise
    channel = k % C
    tap_y = k // C // KX
    tap_x = k // C % KX
    row = (pixel_y - PAD_TOP)[:, None] + tap_y[None, :]
    column = (pixel_x - PAD_LEFT)[:, None] + tap_x[None, :]
    inside = (row >= 0) & (row < H0) & (column >= 0) & (column < W0) & (k < KY * KX * C)[None, :]
    of_pixel = (pixel_y - PAD_TOP) * stride_row + (pixel_x - PAD_LEFT) * stride_pixel
    of_tap = tap_y * stride_row + tap_x * stride_pixel + channel * stride_channel
    offset = n_image * stride_image + of_pixel[:, None] + of_tap[None, :]
    value = tl.load(image + offset, mask=inside, other=0).to(tl.float32)
    scale = tl.load(transform + n_image * 8 + channel)
    shift = tl.load(transform + n_image * 8 + 4 + channel)
    value = tl.where(inside, value * scale[None, :] + shift[None, :], 0.0)

    # ---- sum, epilogue and store
    total = tl.dot(value.to(weights.dtype), weights, input_precision=DOT)
    common.finish(
        total, bias_row, y, pooled, top, left, pixel_y, pixel_x, n, n_image, H, W,
        C_OUT, ACTIVATION, SLOPE, POOL, TILE_H, TILE_W,
    )  # fmt: skip


def candidates(site: Site, capability: int, count: int) -> list[list[Launch]]:
    """For the one step of a `stem`.  Nothing is pipelined here, so only the size of the tile is worth trying."""
    outputs, *kernel, inputs = site.shape("weight")
    k = kernel[0] * kernel[1] * inputs
    rows, columns = padded_channels(outputs), max(16, 1 << (k - 1).bit_length())
    block_n = min(rows, 64 if site.element == 2 else 32)
    top, left, _, _ = site.op["padding"]
    pool = len(site.op["outputs"]) == 2
    launches = []
    for tile_h, tile_w in ((8, 16), (8, 8), (16, 16))[:count]:
        covered = tiles("H", "W", tile_h, tile_w)
        launches.append(
            Launch(
                name=f"{tile_h}x{tile_w} n{block_n}",
                kernel=stem,
                arguments={
                    **site.image_arguments(),
                    "weight": site.weight("weight", (outputs, k), (rows, columns)),
                    "bias": site.exact("bias", (outputs,), (rows,)),
                    "y": site.buffer("outputs", 0),
                    **({"pooled": site.buffer("outputs", 1)} if pool else {}),
                    **size_arguments(1),
                },
                constants={
                    "C": inputs, "C_OUT": outputs, "KY": kernel[0], "KX": kernel[1], "K_PADDED": columns,
                    "PAD_TOP": top, "PAD_LEFT": left, "POOL": pool, "DOT": site.dot(),
                    "TILE_H": tile_h, "TILE_W": tile_w, "BLOCK_N": block_n, **site.activation(),
                },
                grid=(covered, [rows // block_n], ["N"]),
                warps=tile_h * tile_w // 32,
            )
        )  # fmt: skip
    return [launches]
