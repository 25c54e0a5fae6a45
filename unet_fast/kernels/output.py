"""output: logits (N, H, W, K) to the caller's result.

    probability  float32 (N, H, W, K): sigmoid, softmax over K, or the value itself
    mask         uint8 (N, H, W): for sigmoid 255 where the logit exceeds `threshold`, else 0;
                 for softmax the index of the largest logit, the lowest of equal ones

The result may be smaller than the logits, which then give its first rows and columns.

`write_logit` and `write_logits` are what `head` shares.  One program of `output`: BLOCK pixels of a row of one image.
Grid: (blocks of a row * H, 1, N).
"""

# The parameters of a Triton function are tensors of its own language, which has no types to write down.
# mypy: disallow-untyped-defs=False

from __future__ import annotations

import triton
import triton.language as tl

from . import common
from .launch import Launch, Site, ceil_div, size_arguments


@triton.jit
def write_logit(result, logit, threshold, keep, OUTPUT: tl.constexpr, MASK: tl.constexpr):
    """For one channel: logit (M,) to `result`, the M addresses."""
    if MASK:
        tl.store(result, tl.where(logit > threshold, 255, 0).to(tl.uint8), mask=keep)
    elif OUTPUT == "sigmoid":
        tl.store(result, 1.0 / (1.0 + tl.exp(-logit)), mask=keep)
    else:
        tl.store(result, logit, mask=keep)


@triton.jit
def write_logits(result, logits, keep, K: tl.constexpr, OUTPUT: tl.constexpr, MASK: tl.constexpr):
    """For several channels: logits (M, K rounded up) to `result`, the M addresses of the mask or of channel 0."""
    k = tl.arange(0, logits.shape[1])
    if OUTPUT == "softmax":
        logits = tl.where((k < K)[None, :], logits, float("-inf"))
    if MASK:
        tl.store(result, tl.argmax(logits, axis=1, tie_break_left=True).to(tl.uint8), mask=keep)
    else:
        if OUTPUT == "sigmoid":
            logits = 1.0 / (1.0 + tl.exp(-logits))
        elif OUTPUT == "softmax":
            logits = tl.exp(logits - tl.max(logits, axis=1)[:, None])
            logits /= tl.sum(logits, axis=1)[:, None]
        tl.store(result[:, None] + k[None, :], logits, mask=keep[:, None] & (k < K)[None, :])


@triton.jit
def output(
    x, result, threshold, H, W, H0, W0, stride_image, stride_row,
    K: tl.constexpr, OUTPUT: tl.constexpr, MASK: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(W, BLOCK)
    row = tl.program_id(0) // blocks
    n_image = tl.program_id(2)
    column = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    keep = column < W
    source = x + (n_image.to(tl.int64) * H0 + row) * W0 * K
    common.wait_for_producer(PDL)
    target = result + n_image * stride_image + row * stride_row + column * (1 if MASK else K)
    if K == 1 and OUTPUT != "softmax":
        logit = tl.load(source + column, mask=keep, other=0.0).to(tl.float32)
        write_logit(target, logit, threshold, keep, OUTPUT, MASK)
    else:
        k = tl.arange(0, BLOCK_C)
        inside = keep[:, None] & (k < K)[None, :]
        logits = tl.load(source + column[:, None] * K + k[None, :], mask=inside, other=0.0).to(tl.float32)
        write_logits(target, logits, keep, K, OUTPUT, MASK)


def candidates(site: Site, capability: int, count: int) -> list[list[Launch]]:
    """For the one step of an `output`: one launch, bound by memory."""
    channels = site.channels("inputs")
    block_c = 1 << (channels - 1).bit_length()
    block = max(16, min(256, 4096 // block_c))
    launch = Launch(
        name=f"{block}",
        kernel=output,
        arguments={"x": site.buffer("inputs"), **site.result_arguments(), **size_arguments(1)},
        constants={"K": channels, "BLOCK": block, "BLOCK_C": block_c, **site.output()},
        grid=([ceil_div("W", block), "H"], [], ["N"]),
    )
    return [[launch]]
