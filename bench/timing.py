"""Timing as it is lived, and growth: what the rows share beyond the statistics of `unet_fast.bench`."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from unet_fast.bench import Interval, resampled_medians

#: Quantiles that stand for a distribution in stored results; enough to draw it.
QUANTILES = (*(percent / 100 for percent in range(100)), 0.995, 0.999, 1.0)


def quantiles(samples: Sequence[float]) -> list[float]:
    """The samples at `QUANTILES`, the last one the largest."""
    return np.percentile(samples, [100 * quantile for quantile in QUANTILES], method="higher").tolist()


def rounds_within(seconds: float, usual_seconds: float, least: int, most: int) -> int:
    """Rounds that fit into `seconds` if one takes `usual_seconds`, from `least` to `most`."""
    return max(least, min(most, int(seconds / max(usual_seconds, 1e-9))))


class Pace:
    """A camera that delivers a frame every 1 / `rate_hz` seconds; frames that come while the caller is busy are lost.

    Calling it waits for the next frame.  `lost` counts the frames that nobody took.
    """

    def __init__(self, rate_hz: float) -> None:
        self.period_s = 1 / rate_hz
        self.lost = 0
        self._start: float | None = None
        self._taken = -1

    def frames_within(self, seconds: float, usual_seconds: float) -> int:
        """Frames that a caller who takes `usual_seconds` for one can take in `seconds`; at least one."""
        return max(1, int(seconds / (self.period_s * max(1, math.ceil(usual_seconds / self.period_s)))))

    def __call__(self) -> None:
        now = time.perf_counter()
        if self._start is None:
            self._start = now
        frame = max(math.ceil((now - self._start) / self.period_s), self._taken + 1)
        self.lost += frame - self._taken - 1
        self._taken = frame
        time.sleep(max(0.0, self._start + frame * self.period_s - now))


class Latency(NamedTuple):
    """What stands in a table of latencies.  A percentile needs two samples beyond it, else it is None.  Seconds."""

    median: float
    p99: float | None
    p999: float | None
    worst: float
    frames: int
    missed: int | None

    @classmethod
    def of(cls, samples: Sequence[float], deadline_s: float | None) -> Latency:
        """`missed`: calls that took longer than `deadline_s`."""
        count = len(samples)
        return cls(
            float(np.median(samples)),
            float(np.percentile(samples, 99)) if count >= 200 else None,
            float(np.percentile(samples, 99.9)) if count >= 2000 else None,
            float(max(samples)),
            count,
            None if deadline_s is None else sum(bool(sample > deadline_s) for sample in samples),
        )


def growth_exponent(sizes: Sequence[float], samples: Sequence[Sequence[float]]) -> Interval:
    """The exponent e of time = c * size**e through the medians of `samples` (one list per size), and its interval."""

    def slopes(logarithms: Any) -> Any:
        x = np.log(np.asarray(sizes, np.float64))
        x -= x.mean()
        return logarithms @ x / (x @ x)

    resampled = np.stack([resampled_medians(values, seed=seed) for seed, values in enumerate(samples)], axis=1)
    low, high = np.percentile(slopes(np.log(resampled)), [2.5, 97.5])
    return Interval(float(slopes(np.log([np.median(values) for values in samples]))), float(low), float(high))
