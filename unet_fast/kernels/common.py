"""What the convolution kernels share, as Triton helpers.

A convolution is a matrix product: M pixels of a TILE_H x TILE_W tile of one image, times N output channels, summed
over K = taps x input channels.  No matrix of patches is ever stored: each step of the K loop gathers its
(M, BLOCK_K) slice from the image, with zeros outside, while the copies of later steps are in flight.

Channels are innermost in images (y, x, c) and in weights (o, ky, kx, c), so that a weight tensor is the matrix (O, K)
as it stands.  Sums are float32; values are rounded once, at the store.
"""

# The parameters of a Triton function are tensors of its own language, which has no types to write down.
# mypy: disallow-untyped-defs=False

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def wait_for_producer(PDL: tl.constexpr):
    """Programmatic dependent launch: lets the next kernel start its own preamble, then waits until the kernels before
    this one have finished and their writes can be seen.  Only constants may be read before, nothing written."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def activate(value, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr):
    """Applies "none", "relu", "leaky_relu", "sigmoid" or "tanh" to a float32 tensor."""
    if ACTIVATION == "relu":
        value = tl.maximum(value, 0.0)
    elif ACTIVATION == "leaky_relu":
        value = tl.where(value > 0.0, value, value * SLOPE)
    elif ACTIVATION == "sigmoid":
        value = 1.0 / (1.0 + tl.exp(-value))
    elif ACTIVATION == "tanh":
        # exp(2v) overflows to infinity for large v, where 1 - 2 / inf is the right answer.
        value = 1.0 - 2.0 / (tl.exp(2.0 * value) + 1.0)
    return value


@triton.jit
def tile_origin(tile, WIDTH, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """First row and column of a tile, tiles counted along rows of an image WIDTH pixels wide."""
    tiles_x = tl.cdiv(WIDTH, TILE_W)
    return tile // tiles_x * TILE_H, tile % tiles_x * TILE_W


@triton.jit
def tile_pixels(TILE_H: tl.constexpr, TILE_W: tl.constexpr, POOL: tl.constexpr):
    """Row and column within the tile of its M = TILE_H * TILE_W pixels, two int32 (M,).

    With POOL the four pixels of each 2x2 window are neighbours, windows in row order, so that pooling is a
    maximum over groups of four rows of the (M, N) result.
    """
    m = tl.arange(0, TILE_H * TILE_W)
    if POOL:
        window = m // 4
        return window // (TILE_W // 2) * 2 + m % 4 // 2, window % (TILE_W // 2) * 2 + m % 2
    else:
        return m // TILE_W, m % TILE_W


@triton.jit
def interpolation(position, size, SCALE: tl.constexpr, CORNERS: tl.constexpr):
    """Lower index, upper index and weight of the upper one for linear upsampling of a line of `size` samples by SCALE.

    Outside the upsampled line (-1, say) the indices are clamped, so that they stay readable.
    """
    if CORNERS:
        source = position.to(tl.float32) * ((size - 1).to(tl.float32) / (SCALE * size - 1).to(tl.float32))
    else:
        source = (position.to(tl.float32) + 0.5) / SCALE - 0.5
    source = tl.maximum(source, 0.0)
    lower = tl.minimum(source.to(tl.int32), size - 1)
    return lower, tl.minimum(lower + 1, size - 1), source - lower.to(tl.float32)


@triton.jit
def within(position, size):
    """0 <= position < size, in one comparison."""
    return position.to(tl.uint32, bitcast=True) < size.to(tl.uint32, bitcast=True)


@triton.jit
def upsampled(image, y, x, c, inside, base_row, H, W, C: tl.constexpr, UPSAMPLE: tl.constexpr):
    """Values of channel c at (y, x) of an image (H, W, C) upsampled x2; zero where not `inside`.  Shapes broadcast.
    `image` points to row `base_row`, so that offsets fit 32 bits."""
    if UPSAMPLE == "nearest":
        offset = ((y // 2 - base_row) * W + x // 2) * C + c
        return tl.load(image + offset, mask=inside, other=0.0, cache_modifier=".ca")
    else:
        top, bottom, weight_y = interpolation(y, H, 2, UPSAMPLE == "bilinear_corners")
        left, right, weight_x = interpolation(x, W, 2, UPSAMPLE == "bilinear_corners")
        top = (top - base_row) * W
        bottom = (bottom - base_row) * W
        value = (1.0 - weight_y) * (1.0 - weight_x) * tl.load(image + (top + left) * C + c, mask=inside, other=0.0)
        value += (1.0 - weight_y) * weight_x * tl.load(image + (top + right) * C + c, mask=inside, other=0.0)
        value += weight_y * (1.0 - weight_x) * tl.load(image + (bottom + left) * C + c, mask=inside, other=0.0)
        value += weight_y * weight_x * tl.load(image + (bottom + right) * C + c, mask=inside, other=0.0)
        return value.to(image.dtype.element_ty)


@triton.jit
def accumulate(
    total, image, weight, n, y, x, first_row, n_image, H, W, first, last,
    C: tl.constexpr, KX: tl.constexpr, K: tl.constexpr, K_PADDED: tl.constexpr,
    BLOCK_K: tl.constexpr, UPSAMPLE: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """total[m, n] += sum over k of window[m, k] * weight[n, k], for the K steps first <= step < last of BLOCK_K each.

    total      float32 (M, N)
    image      (images, H, W, C); the window of pixel m starts at row y[m], column x[m] of the image, or of the image
               upsampled x2, and reads zeros outside of it
    weight     (rows, K_PADDED), K = taps * C of which count; row n[j] belongs to column j of `total`
    first_row  least y of the tile, a scalar: addresses are 64-bit up to there, 32-bit from there
    n_image    which image
    DOT        "ieee" or "tf32", for float32 operands
    """
    scale: tl.constexpr = 1 if UPSAMPLE == "none" else 2
    # A row above the tile, since interpolation looks up by one.
    base_row = first_row // scale - scale + 1
    base = image + (n_image.to(tl.int64) * H + base_row) * W * C
    corner = (((y - base_row) * W + x) * C)[:, None]
    k = tl.arange(0, BLOCK_K)
    weight_rows = weight + n[None, :] * K_PADDED + k[:, None]
    for step in range(first, last):
        index = step * BLOCK_K + k
        if C % BLOCK_K == 0:
            # One tap per step: its row and column are scalars.
            tap = step // (C // BLOCK_K)
            c = (step % (C // BLOCK_K) * BLOCK_K + k)[None, :]
        else:
            # Few or odd channels: several taps share a step, each column of the slice finds its own.
            tap = (index // C)[None, :]
            c = (index % C)[None, :]
        tap_y = tap // KX
        tap_x = tap % KX
        inside = within(y[:, None] + tap_y, H * scale) & within(x[:, None] + tap_x, W * scale)
        if C % BLOCK_K != 0:
            inside &= (index < K)[None, :]
        if UPSAMPLE == "none":
            # Neighbouring taps read the same pixels: .ca keeps them in the multiprocessor's own cache, where 16-byte
            # asynchronous copies otherwise go to the second level each time (as they do in triton 3.6, which ignores
            # .ca here): nine times the traffic for a 3x3 kernel.  The address of a pixel is worked out once, before
            # the loop: with all of it inside, integer instructions outnumbered the copies forty to one.
            offset = corner + ((tap_y * W + tap_x) * C + c)
            window = tl.load(base + offset, mask=inside, other=0.0, cache_modifier=".ca")
        else:
            window = upsampled(base, y[:, None] + tap_y, x[:, None] + tap_x, c, inside, base_row, H, W, C, UPSAMPLE)
        total = tl.dot(window, tl.load(weight_rows + step * BLOCK_K), total, input_precision=DOT)
    return total


@triton.jit
def last_arriver(total, partials, counters, tile, split, SPLIT: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """Stores one part of a sum over K and tells whether all SPLIT parts of this tile are there now.

    partials   float32 (tiles, SPLIT, M, N)
    counters   int32 (tiles,), zero before and, once the tile is complete, after
    """
    element = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(partials + (tile.to(tl.int64) * SPLIT + split) * (M * N) + element, total)
    # Every thread's part must be stored before one thread announces it.
    tl.debug_barrier()
    arrived = tl.atomic_add(counters + tile, 1, sem="acq_rel", scope="gpu")
    if arrived == SPLIT - 1:
        tl.store(counters + tile, 0)
    return arrived == SPLIT - 1


@triton.jit
def sum_parts(partials, tile, SPLIT: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """The sum of a tile's parts, in order of their number whoever comes last: the same bits in each run."""
    element = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
    base = partials + tile.to(tl.int64) * (SPLIT * M * N) + element
    total = tl.zeros((M, N), tl.float32)
    for split in range(SPLIT):
        # .cg: other programs wrote these, so the multiprocessor's own cache must not answer.
        total += tl.load(base + split * (M * N), cache_modifier=".cg")
    return total


@triton.jit
def store_pixels(image, value, y, x, first_row, n, n_image, keep, H, W, CHANNELS: tl.constexpr):
    """image[n_image, y[m], x[m], n[j]] = value[m, j] in an image (images, H, W, CHANNELS), where keep[m]."""
    base = image + (n_image.to(tl.int64) * H + first_row) * W * CHANNELS
    offset = (((y - first_row) * W + x) * CHANNELS)[:, None] + n[None, :]
    tl.store(base + offset, value.to(image.dtype.element_ty), mask=keep[:, None] & (n < CHANNELS)[None, :])


@triton.jit
def finish(
    total, bias_row, y, pooled, top, left, pixel_y, pixel_x, n, n_image, H, W,
    C_OUT: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, POOL: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr,
):  # fmt: skip
    """Bias, activation, store; with POOL also the maximum of each 2x2 window."""
    value = activate(total + bias_row[None, :], ACTIVATION, SLOPE)
    keep = (pixel_y < H) & (pixel_x < W)
    store_pixels(y, value, pixel_y, pixel_x, top, n, n_image, keep, H, W, C_OUT)
    if POOL:
        windows: tl.constexpr = TILE_H * TILE_W // 4
        best = tl.max(tl.reshape(value, (windows, 4, n.shape[0])), axis=1)
        window = tl.arange(0, windows)
        window_y = top // 2 + window // (TILE_W // 2)
        window_x = left // 2 + window % (TILE_W // 2)
        keep_window = (window_y < H // 2) & (window_x < W // 2)
        store_pixels(pooled, best, window_y, window_x, top // 2, n, n_image, keep_window, H // 2, W // 2, C_OUT)
