"""head: the last convolution, the 1x1 convolution behind it and the output function, in one pass over the pixels.

    h = act(bias + conv(x)),  logit[k] = head_bias[k] + sum over o of head_weight[k, o] * h[o],  result as in output.py

    x (N, H0, W0, C)  ->  probability (N, H, W, K) float32, or mask (N, H, W) uint8

One program: one tile of TILE_H x TILE_W pixels of one image with all O channels, BLOCK_N after BLOCK_N, which never
leave the registers.  One output is a weighted sum in float32; several are a second matrix product.
Grid: (tiles, 1, N).
"""

# The parameters of a Triton function are tensors of its own language, which has no types to write down.
# mypy: disallow-untyped-defs=False

from __future__ import annotations

import triton
import triton.language as tl

from . import common
from .launch import Launch, Site, size_arguments, tiles
from .output import write_logit, write_logits
from .tilings import padded_channels, padded_k, tilings


@triton.jit
def head(
    x, weight, bias, head_weight, head_bias, result, threshold,
    H, W, H0, W0, stride_image, stride_row,
    C: tl.constexpr, ROWS: tl.constexpr, K: tl.constexpr, CLASSES: tl.constexpr,
    KY: tl.constexpr, KX: tl.constexpr, K_PADDED: tl.constexpr,
    PAD_TOP: tl.constexpr, PAD_LEFT: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr,
    OUTPUT: tl.constexpr, MASK: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT: tl.constexpr,
    DOT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    # ---- ids
    M: tl.constexpr = TILE_H * TILE_W
    ONE: tl.constexpr = K == 1 and OUTPUT != "softmax"
    n_image = tl.program_id(2)

    # ---- offsets
    top, left = common.tile_origin(tl.program_id(0), W, TILE_H, TILE_W)
    in_tile_y, in_tile_x = common.tile_pixels(TILE_H, TILE_W, False)
    pixel_y = top + in_tile_y
    pixel_x = left + in_tile_x
    k = tl.arange(0, CLASSES)
    if ONE:
        logits = tl.zeros((M,), tl.float32) + tl.load(head_bias)
    else:
        logits = tl.zeros((M, CLASSES), tl.float32) + tl.load(head_bias + k)[None, :]
    common.wait_for_producer(PDL)

    # ---- sum, block of channels by block of channels
    STEPS: tl.constexpr = (KY * KX * C + BLOCK_K - 1) // BLOCK_K
    for block in tl.static_range(ROWS // BLOCK_N):
        n = block * BLOCK_N + tl.arange(0, BLOCK_N)
        total = tl.zeros((M, BLOCK_N), tl.float32)
        total = common.accumulate(
            total, x, weight, n, pixel_y - PAD_TOP, pixel_x - PAD_LEFT, top - PAD_TOP, n_image, H0, W0, 0, STEPS,
            C, KX, KY * KX * C, K_PADDED, BLOCK_K, "none", DOT,
        )  # fmt: skip
        value = common.activate(total + tl.load(bias + n)[None, :], ACTIVATION, SLOPE)
        if ONE:
            logits += tl.sum(value * tl.load(head_weight + n)[None, :], axis=1)
        else:
            weights = tl.load(head_weight + k[None, :] * ROWS + n[:, None])
            logits = tl.dot(value.to(weights.dtype), weights, logits, input_precision=DOT)

    # ---- output function and store
    keep = (pixel_y < H) & (pixel_x < W)
    target = result + n_image * stride_image + pixel_y * stride_row + pixel_x * (1 if MASK else K)
    if ONE:
        write_logit(target, logits, threshold, keep, OUTPUT, MASK)
    else:
        write_logits(target, logits, keep, K, OUTPUT, MASK)


def candidates(site: Site, capability: int, count: int) -> list[list[Launch]]:
    """For the one step of a `head`."""
    channels, *kernel, inputs = site.shape("weight")
    classes = site.shape("head_bias")[0]
    k = kernel[0] * kernel[1] * inputs
    rows, columns = padded_channels(channels), padded_k(k, inputs)
    one = classes == 1 and site.document["output"]["kind"] != "softmax"
    padded_classes = 1 if one else max(16, 1 << (classes - 1).bit_length())
    packed = site.exact if one else site.weight
    top, left, _, _ = site.op["padding"]
    size = site.nominal_size("inputs")
    launches = []
    for tiling in tilings(
        capability, site.element, *size, 1, channels, [(inputs, k // inputs)], count, split=False, loop_n=True
    ):
        covered = tiles("H", "W", tiling.tile_h, tiling.tile_w)
        launches.append(
            Launch(
                name=tiling.name,
                kernel=head,
                arguments={
                    "x": site.buffer("inputs"),
                    "weight": site.weight("weight", (channels, k), (rows, columns)),
                    "bias": site.exact("bias", (channels,), (rows,)),
                    "head_weight": packed("head_weight", (classes, channels), (padded_classes, rows)),
                    "head_bias": site.exact("head_bias", (classes,), (padded_classes,)),
                    **site.result_arguments(),
                    **size_arguments(1),
                },
                constants={
                    "C": inputs, "ROWS": rows, "K": classes, "CLASSES": padded_classes,
                    "KY": kernel[0], "KX": kernel[1], "K_PADDED": columns, "PAD_TOP": top, "PAD_LEFT": left,
                    "DOT": site.dot(),
                    **site.activation(), **site.output(), **tiling.constants(),
                },
                grid=(covered, [], ["N"]),
                warps=tiling.warps,
                stages=tiling.stages,
            )
        )  # fmt: skip
    return [launches]
