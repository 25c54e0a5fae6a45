"""Which tiles are worth trying for a convolution, best guess first.

The guess is a small model of one launch: programs come in waves over the multiprocessors; a program's time is what
its slices take to come from the second-level cache or the matrix unit to multiply them, whichever is slower.  It only
has to put a good candidate among the first few: `unet-fast tune` measures those on the GPU at hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import ceil

from .launch import Argument, Axis, scratch


@dataclass(frozen=True)
class Device:
    """Rough figures of a GPU, for the guess only.

    multiprocessors   of the usual model
    far, near         bytes per microsecond that one multiprocessor draws from the second-level cache, and from its own
    matrix            16-bit multiply-adds per microsecond of one multiprocessor
    shared            bytes of shared memory one program may use
    """

    multiprocessors: int
    far: float
    near: float
    matrix: float
    shared: int


DEVICES: dict[int, Device] = {
    80: Device(108, 40e3, 90e3, 1.4e6, 163 * 1024),
    90: Device(132, 45e3, 110e3, 3.2e6, 227 * 1024),
    100: Device(148, 60e3, 110e3, 6.0e6, 227 * 1024),
    120: Device(170, 45e3, 120e3, 1.2e6, 99 * 1024),
}

#: Programs that use more shared memory than this keep the next kernel from starting early (programmatic launch).
SHARED_FOR_OVERLAP = 110 * 1024

LAUNCH_MICROSECONDS = 1.0  # a program's own start and end: addresses, first copies, store
STEP_MICROSECONDS = 0.6  # from asking the second-level cache to having multiplied
SPLIT_MICROSECONDS = 1.5  # more for a split sum: parts to memory, a counter
PART_MICROSECONDS = 0.1  # and a part back


@dataclass(frozen=True)
class Tiling:
    """TILE_H x TILE_W pixels times BLOCK_N channels per program, BLOCK_K terms per step, the sum in SPLIT parts."""

    tile_h: int
    tile_w: int
    block_n: int
    block_k: int
    split: int
    stages: int
    warps: int

    @property
    def name(self) -> str:
        split = f" split{self.split}" if self.split > 1 else ""
        return f"{self.tile_h}x{self.tile_w} n{self.block_n} k{self.block_k} s{self.stages} w{self.warps}{split}"

    def constants(self) -> dict[str, int]:
        return {
            "TILE_H": self.tile_h,
            "TILE_W": self.tile_w,
            "BLOCK_N": self.block_n,
            "BLOCK_K": self.block_k,
            "SPLIT": self.split,
        }

    def split_scratch(self, programs: Axis) -> dict[str, Argument]:
        """Scratch of a split sum; `programs` counts (tile, channel block) pairs over the batch."""
        if self.split == 1:
            return {}
        part = self.tile_h * self.tile_w * self.block_n * 4
        return {
            "partials": scratch([*programs, self.split * part], zeroed=False),
            "counters": scratch([*programs, 4], zeroed=True),
        }


def device_of(capability: int) -> Device:
    """Figures of the closest GPU that is not newer."""
    return DEVICES[max((known for known in DEVICES if known <= capability), default=80)]


def padded_channels(channels: int) -> int:
    """Rows of a packed weight matrix for so many output channels: every block of channels divides it."""
    block = 16
    while block < 128 and block < channels:
        block *= 2
    return ceil(channels / block) * block


def padded_k(k: int, channels: int) -> int:
    """Columns of a packed weight matrix: whole steps of the largest block."""
    return k if channels % 64 == 0 else ceil(k / step_limit(channels)) * step_limit(channels)


def step_limit(channels: int) -> int:
    """The largest BLOCK_K: 64 terms are 128 bytes at 16 bits, the widest swizzle of shared memory.  Channel counts that
    64 does not divide use their largest power of two from 16 up; the rest share steps between taps."""
    if channels % 64 == 0:
        return 64
    for block in (32, 16):
        if channels % block == 0:
            return 64 if channels == block else block
    return 64 if channels >= 8 else 16


def tilings(
    capability: int, element: int, height: int, width: int, images: int, channels_out: int,
    sources: list[tuple[int, int]], count: int, split: bool = True, loop_n: bool = False,
) -> list[Tiling]:  # fmt: skip
    """The `count` most promising tilings, no two of them alike but for their number of stages.

    element   bytes of an activation
    height, width, images   of what is computed, at the nominal size
    sources   (channels, taps) of each tensor that is read
    split     whether the kernel can split its sum
    loop_n    whether one program computes all output channels, block by block
    """
    device = device_of(capability)
    guess: dict[Tiling, float] = {}
    for tiling in _possible(device, element, channels_out, sources, split):
        passes = padded_channels(channels_out) // tiling.block_n
        blocks = 1 if loop_n else passes
        programs = ceil(height / tiling.tile_h) * ceil(width / tiling.tile_w) * images * blocks * tiling.split
        guess[tiling] = _microseconds(tiling, device, element, programs, sources) * (passes // blocks)
    best: dict[tuple[int, ...], Tiling] = {}
    for tiling in sorted(guess, key=lambda tiling: (guess[tiling], tiling.name)):
        best.setdefault((tiling.tile_h, tiling.tile_w, tiling.block_n, tiling.split), tiling)
    return list(best.values())[:count]


def _possible(
    device: Device, element: int, channels_out: int, sources: list[tuple[int, int]], split: bool
) -> Iterator[Tiling]:
    rows = padded_channels(channels_out)
    limit = min(SHARED_FOR_OVERLAP, device.shared)
    block_k = max(16, min(step_limit(channels) for channels, _ in sources) // (element // 2))
    steps = sum(ceil(channels * taps / block_k) for channels, taps in sources)
    splits = [parts for parts in (1, 2, 4, 8) if parts == 1 or (split and steps // parts >= 4)]
    for (tile_h, tile_w), block_n, stages, parts in product(
        ((8, 8), (8, 16), (16, 16)), (16, 32, 64, 128), (3, 4), splits
    ):
        pixels = tile_h * tile_w
        if rows % block_n or block_n < min(rows, 32):
            continue
        # Sums beyond 64 (float32 without matrix units: 32) registers a thread would spill.
        warps = 4 if pixels * block_n <= 128 * 64 else 8
        if pixels * block_n > (128 * 128 if element == 2 else 64 * 64) or warps * 32 > pixels * 2:
            continue
        if stages * (pixels + block_n) * block_k * element <= limit and stages <= max(steps, 3):
            yield Tiling(tile_h, tile_w, block_n, block_k, parts, stages, warps)


def _microseconds(tiling: Tiling, device: Device, element: int, programs: int, sources: list[tuple[int, int]]) -> float:
    pixels = tiling.tile_h * tiling.tile_w
    terms = sum(channels * taps for channels, taps in sources) / tiling.split
    seen = sum(channels for channels, _ in sources) / tiling.split * (tiling.tile_h + 2) * (tiling.tile_w + 2)
    load = (tiling.block_n * terms + seen) * element / device.far + pixels * terms * element / device.near
    multiply = pixels * tiling.block_n * terms / device.matrix * (element / 2) ** 2
    latency = terms / tiling.block_k / tiling.stages * STEP_MICROSECONDS
    alone = LAUNCH_MICROSECONDS + max(load, multiply, latency)
    waves = ceil(programs / device.multiprocessors)
    # Programs that share a multiprocessor hide each other's start and latency, not each other's traffic.
    time = alone + (waves - 1) * max(load, multiply, alone / 4)
    return time + (SPLIT_MICROSECONDS + PART_MICROSECONDS * tiling.split if tiling.split > 1 else 0.0)
