"""Which tiles are worth trying for a convolution, best guess first.

The guess is a small model of one launch: programs come in waves over the multiprocessors; a program's time is what
its slices take to come from the second-level cache or the matrix unit to multiply them, whichever is slower.  It only
has to put a good candidate among the first few: `unet-fast tune` measures those on the GPU at hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

from .launch import Argument, Axis, scratch


@dataclass(frozen=True)
class Device:
    """Rough figures of a GPU, for the guess only.

    multiprocessors   of the usual model
    cache             bytes per microsecond that one multiprocessor draws from the second-level cache
    matrix            16-bit multiply-adds per microsecond of one multiprocessor
    shared            bytes of shared memory one program may use
    """

    multiprocessors: int
    cache: float
    matrix: float
    shared: int


DEVICES: dict[int, Device] = {
    80: Device(108, 45e3, 1.4e6, 163 * 1024),
    90: Device(132, 70e3, 3.2e6, 227 * 1024),
    100: Device(148, 70e3, 6.0e6, 227 * 1024),
    120: Device(170, 60e3, 1.2e6, 99 * 1024),
}

#: Programs that use more shared memory than this keep the next kernel from starting early (programmatic launch).
SHARED_FOR_OVERLAP = 110 * 1024

LAUNCH_MICROSECONDS = 1.0  # a program's own start and end: addresses, first copies, store
SPLIT_MICROSECONDS = 1.5  # more for a split sum: parts to memory, a counter, parts back


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
    """The `count` most promising tilings.

    element   bytes of an activation
    height, width, images   of what is computed, at the nominal size
    sources   (channels, taps) of each tensor that is read
    split     whether the kernel can split its sum
    loop_n    whether one program computes all output channels, block by block
    """
    device = device_of(capability)
    ranked: dict[Tiling, float] = {}
    for tiling in _possible(capability, element, channels_out, sources, split):
        ranked[tiling] = _microseconds(tiling, device, element, height, width, images, channels_out, sources)
    ordered = sorted(ranked, key=lambda tiling: (ranked[tiling], tiling.name))
    return ordered[:count]


def _possible(
    capability: int, element: int, channels_out: int, sources: list[tuple[int, int]], split: bool
) -> Iterator[Tiling]:
    rows = padded_channels(channels_out)
    limit = min(SHARED_FOR_OVERLAP, device_of(capability).shared)
    block_k = min(step_limit(channels) for channels, _ in sources) // (2 if element == 4 else 1)
    block_k = max(block_k, 16)
    steps = sum(ceil(channels * taps / block_k) for channels, taps in sources)
    for tile_h, tile_w in ((8, 8), (8, 16)):
        for block_n in (16, 32, 64, 128):
            if rows % block_n or block_n < min(rows, 32):
                continue
            area = tile_h * tile_w * block_n
            if element == 4 and area > 64 * 64:
                continue  # float32 without matrix units: more would not fit the registers
            for stages in (3, 4):
                if stages * (tile_h * tile_w + block_n) * block_k * element > limit or stages > max(steps, 3):
                    continue
                for parts in (1, 2, 4, 8) if split else (1,):
                    if parts == 1 or steps // parts >= 4:
                        yield Tiling(tile_h, tile_w, block_n, block_k, parts, stages, 4 if area <= 128 * 64 else 8)


def _microseconds(
    tiling: Tiling, device: Device, element: int, height: int, width: int, images: int, channels_out: int,
    sources: list[tuple[int, int]],
) -> float:  # fmt: skip
    m = tiling.tile_h * tiling.tile_w
    programs = ceil(height / tiling.tile_h) * ceil(width / tiling.tile_w) * images * tiling.split
    programs *= padded_channels(channels_out) // tiling.block_n
    terms = sum(channels * taps for channels, taps in sources) / tiling.split
    # Two resident programs hide each other's start and end.
    load = (m + tiling.block_n) * terms * element / device.cache
    multiply = m * tiling.block_n * terms / device.matrix * (element / 2) ** 2
    latency = terms / tiling.block_k / tiling.stages * 0.6
    waves = ceil(programs / device.multiprocessors)
    alone = LAUNCH_MICROSECONDS + max(load, multiply, latency)
    time = alone + (waves - 1) * max(load, multiply, alone / 4)
    return time + (SPLIT_MICROSECONDS + 0.1 * tiling.split if tiling.split > 1 else 0.0)
