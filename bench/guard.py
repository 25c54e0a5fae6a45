"""The guard: is a row slower than its baseline?

A row keeps, for each round, the seconds of the engine divided by the seconds of the reference workload just before and
after it (`machine.Native.reference`), so that a slow hour divides out.  Virtual processors may share a real one for
seconds or minutes: then two threads are as slow as one, each program in its own measure, and no system call tells.  So
the workload also runs on one thread, and rounds in which all threads were not that many times faster are left out
(`ratios`).  Of the others the lower quartile is compared: what disturbs a call only ever makes it slower, so that it
wavers least (0.997 to 1.042 over ten processes of one engine, where means were 1.01 to 1.17 and medians 1.02 to 1.08):

    change = quartile(now) / quartile(baseline), with a bootstrap interval over both

    fails    the whole interval is above 1.10
    slower   the change is above 1.05 and the whole interval above 1: reported, and no failure
    faster   the reverse of slower
    same     anything else

So what fails has certainly lost more than a tenth, and a tenth is found: 1.05 lies in the middle between it and no
change, as far from the one error as from the other.  tests/test_bench.py checks this on noise recorded from a real
machine in results/noise.json.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_fast.bench import Interval

RESULTS = Path(__file__).parent / "results"
FAILS_ABOVE = 1.10
FOUND_ABOVE = 1.05
#: A session judges dozens of rows, so each with more certainty than the usual 95 %.
CONFIDENCE = 0.99
DEFAULT_BASELINE = "main"
#: A row is not judged if others used more than this part of the processors meanwhile: with threads that wait for their
#: turn, the engine and the reference workload no longer slow down alike.
BUSY_ABOVE = 0.05
#: A round is left out if the reference workload took this many times the share of each thread.
SHARED_ABOVE = 1.3
#: A row is not judged if fewer rounds than these are left, or less than that part of them.
LEAST_ROUNDS, LEAST_PART = 3, 0.25
#: Nor if its own interval is wider than that, unless all of the change's interval is above the second one: no noise of
#: a machine doubles the lower quartile.
WAVERS_ABOVE = 1.1
SURELY_ABOVE = 2.0


@dataclass
class Reference:
    """Seconds of the reference workload by round: with all threads `before` and `after` the row, and `alone` on one."""

    before: list[float]
    after: list[float]
    alone: list[float]


def ratios(seconds: Sequence[float], reference: Reference, threads: int) -> list[float]:
    """Seconds of a row over those of the reference workload, of the rounds in which each thread had a processor."""
    limit = SHARED_ABOVE * float(np.median(reference.alone)) / threads
    rounds = zip(seconds, reference.before, reference.after, strict=True)
    return [mine / ((before + after) / 2) for mine, before, after in rounds if max(before, after) <= limit]


def unfit(rounds: int, left: Sequence[float], baseline: Sequence[float] = ()) -> str:
    """Why a row of so many rounds, with these ratios left, says too little about its `baseline`, or ""."""
    if len(left) < LEAST_ROUNDS or len(left) < LEAST_PART * rounds:
        return f"in {rounds - len(left)} of {rounds} rounds its threads had to share a processor"
    low, high = _interval(lower_quartile(_resampled(left, seed=0)))
    if high / low <= WAVERS_ABOVE or (baseline and compare(baseline, left).change.low > SURELY_ABOVE):
        return ""
    return f"it wavers by {high / low - 1:.0%}"


@dataclass(frozen=True)
class Verdict:
    """`change` is now over baseline: 1.2 is a fifth slower."""

    outcome: str
    change: Interval

    def __str__(self) -> str:
        percent = [100 * (value - 1) for value in self.change]
        return f"{self.outcome}: {percent[0]:+.1f} % (99 % interval {percent[1]:+.1f} .. {percent[2]:+.1f})"


def compare(baseline: Sequence[float], now: Sequence[float]) -> Verdict:
    """Judges the ratios of one row, see above."""
    resampled = lower_quartile(_resampled(now, seed=1)) / lower_quartile(_resampled(baseline, seed=2))
    low, high = _interval(resampled)
    value = float(lower_quartile(np.asarray(now)) / lower_quartile(np.asarray(baseline)))
    change = Interval(value, low, high)
    if low > FAILS_ABOVE:
        return Verdict("fails", change)
    if value > FOUND_ABOVE and low > 1:
        return Verdict("slower", change)
    return Verdict("faster" if value < 1 / FOUND_ABOVE and high < 1 else "same", change)


def lower_quartile(values: NDArray[Any]) -> Any:
    """Over the last axis."""
    return np.percentile(values, 25, axis=-1)


def _interval(resampled: NDArray[np.float64]) -> tuple[float, float]:
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return float(low), float(high)


def _resampled(ratios: Sequence[float], seed: int, resamples: int = 1000) -> NDArray[np.float64]:
    """Bootstrap samples (resamples, len(ratios)), of whole blocks, since a busy neighbour stays for many rounds."""
    values = np.asarray(ratios, np.float64)
    length = math.isqrt(len(values))
    starts = np.random.default_rng(seed).integers(0, len(values), (resamples, -(-len(values) // length), 1))
    picks = ((starts + np.arange(length)) % len(values)).reshape(resamples, -1)
    return values[picks[:, : len(values)]]


class Baseline:
    """Ratios by row of an earlier run on this class of machine."""

    def __init__(self, rows: dict[str, list[float]], about: dict[str, Any]) -> None:
        self.rows = rows
        self.about = about

    @staticmethod
    def path(name: str, machine_class: str) -> Path:
        """Where a baseline is kept: a path as it is given, else a file under results/."""
        return Path(name) if name.endswith(".json") else RESULTS / f"baseline-{machine_class}-{name}.json"

    @classmethod
    def load(cls, path: Path) -> Baseline:
        stored = json.loads(path.read_text())
        return cls(stored["rows"], stored["about"])

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = {name: [float(f"{ratio:.4g}") for ratio in ratios] for name, ratios in sorted(self.rows.items())}
        path.write_text(json.dumps({"about": self.about, "rows": rows}, indent=1, sort_keys=True) + "\n")


def explanation(row: str, verdict: Verdict, baseline: Baseline, now: dict[str, list[float]]) -> str:
    """What a failure prints: the verdict, both distributions, and the op that moved most."""
    before, after = baseline.rows[row], now[row]
    lines = [
        f"{row} {verdict}",
        "time over that of the reference workload, baseline above, now below:",
        *_histograms(before, after),
    ]
    moved = {
        name: compare(baseline.rows[name], ratios).change.value
        for name, ratios in now.items()
        if name.startswith("op/") and name in baseline.rows
    }
    if moved:
        worst = max(moved, key=lambda name: moved[name])
        lines.append(f"the op that moved most: {worst.removeprefix('op/')}, {100 * (moved[worst] - 1):+.1f} %")
    else:
        lines.append("no single ops were measured in both runs; run all of bench/ to see which one moved")
    return "\n".join(lines)


def _histograms(before: Sequence[float], after: Sequence[float], bins: int = 48) -> list[str]:
    """Both distributions over one axis, as a line of blocks each."""
    low, high = np.percentile([*before, *after], [1, 99])
    edges = np.linspace(low, max(high, low * 1.001), bins + 1)
    lines = []
    for name, values in (("baseline", before), ("now", after)):
        counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
        bars = "".join(" ▁▂▃▄▅▆▇█"[-(-8 * count // max(counts))] for count in counts)
        lines.append(f"  {name:8}  |{bars}|  quartile {lower_quartile(np.asarray(values)):.3f}, {len(values)} rounds")
    lines.append(f"  {'':8}   {low:<10.3f}{'':{bins - 20}}{edges[-1]:>10.3f}")
    return lines
