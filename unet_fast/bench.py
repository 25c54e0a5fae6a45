"""`unet-fast bench MODEL`: how fast an engine file is on this machine, as a short table.

The statistics here serve the larger benchmarks in `bench/` of the source tree too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import engine_file
from .engine import Engine
from .errors import UnsupportedError
from .plan import cost

#: A turn begins with an untimed call, so that it meets warm caches and no one else's spinning threads.  Those cost a
#: few milliseconds at most, so calls longer than this go without.
SETTLE_BELOW_S = 0.2
_RESAMPLES = 1000
_PRECISIONS = ("float32", "bf16", "fp16", "int8")


class Interval(NamedTuple):
    """A value with its confidence interval, in the unit of the samples."""

    value: float
    low: float
    high: float


def resampled_medians(samples: Sequence[float], resamples: int = _RESAMPLES, seed: int = 0) -> NDArray[np.float64]:
    """Medians of `resamples` bootstrap samples."""
    values = np.asarray(samples, np.float64)
    picks = np.random.default_rng(seed).integers(0, len(values), (resamples, len(values)))
    return np.median(values[picks], axis=1)


def median_interval(samples: Sequence[float], confidence: float = 0.95) -> Interval:
    """The median and its bootstrap interval."""
    tail = 50 * (1 - confidence)
    low, high = np.percentile(resampled_medians(samples), [tail, 100 - tail])
    return Interval(float(np.median(samples)), float(low), float(high))


def timed_turn(call: Callable[[], Any], usual_seconds: float) -> float:
    """Seconds of one `call`, after an untimed one where it usually takes less than `SETTLE_BELOW_S`."""
    if usual_seconds < SETTLE_BELOW_S:
        call()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def time_in_turns(calls: dict[str, Callable[[], Any]], seconds: float, least: int = 5) -> dict[str, list[float]]:
    """Seconds of each call: one of each in turn (A B C A B C ...) after a round to warm up, for about `seconds`."""
    usual = {}
    for name, call in calls.items():
        call()
        usual[name] = timed_turn(call, 0.0)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(samples[next(iter(samples))]) < least:
        for name, call in calls.items():
            samples[name].append(timed_turn(call, usual[name]))
    return samples


def duration(seconds: float) -> str:
    """`seconds` for people: "12.3 ms"."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}" if seconds < 999.5 * scale else f"{seconds / scale:.0f} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first of them the heading, as aligned text: the first column left, the others right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(pairs))
        for pairs in (tuple(zip(row, widths, strict=True)) for row in rows)
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def bench(engine: Engine, *, seconds: float = 3.0) -> str:
    """The table for `engine`, which takes about 10 times `seconds`; for large networks longer.

    The batches are measured in turns with each other, as are the precisions that the file allows on this device and a
    single thread, so that a slow moment of the machine meets all of them.
    """
    info, side = engine.info, engine.info.tile
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (16, side, side, info.channels), np.uint8)
    flops = _flops(engine, side)

    rows = [("", "median", "95 % interval", "99 %", "images/s", "GFLOP/s")]

    def add(name: str, samples: Sequence[float], batch: int = 1) -> None:
        middle = median_interval(samples)
        rows.append(
            (
                name,
                duration(middle.value),
                f"{duration(middle.low)} .. {duration(middle.high)}",
                duration(float(np.percentile(samples, 99))) if len(samples) >= 100 else "-",
                f"{batch / middle.value:,.1f}",
                f"{batch * flops / middle.value / 1e9:,.0f}",
            )
        )

    batches = {batch: images[:batch] for batch in (1, 4, 16)}
    measured = time_in_turns({str(n): partial(_result, engine, batches[n]) for n in batches}, 3 * seconds)
    for batch in batches:
        add(f"batch {batch}", measured[str(batch)], batch)
    for name, samples in time_in_turns(_variants(engine, images[0]), 2 * seconds).items():
        add(name, samples)
    add("after 1 s of idleness", _after_idleness(partial(_result, engine, images[0]), max(3, int(seconds))))
    add("load to first result", time_in_turns({"": partial(_load_and_run, engine, images[0])}, seconds)[""])
    about = f"{side} x {side} x {info.channels}, uint8 in and the result out; {flops / 1e9:.2f} GFLOP per image"
    load = f"load of the machine {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores"
    return f"{engine!r}\n{about}; {load}\n\n{table(rows)}"


def _flops(engine: Engine, side: int) -> int:
    """Floating point operations (2 per multiply-add) of one image, as the fused ops need them."""
    graph = engine_file.read(engine.source).graph
    return sum(cost(graph, node, side, side).flops for node in graph.nodes)


def _variants(engine: Engine, image: NDArray[Any]) -> dict[str, Callable[[], Any]]:
    """The same file with other options: each precision that it allows here, and one thread."""
    options: list[tuple[str, dict[str, Any]]] = [(name, {"precision": name}) for name in _PRECISIONS]
    if engine.threads > 1 and engine.device.startswith("cpu"):
        options.append(("one thread", {"precision": engine.precision, "threads": 1}))
    calls: dict[str, Callable[[], Any]] = {}
    for name, changed in options:
        keywords = {"device": engine.device, "threads": engine.threads, **changed}
        try:
            other = Engine(engine.source, **keywords)
        except (UnsupportedError, ValueError):  # this file or machine has no such precision
            continue
        calls[name] = partial(_result, other, image)
    return calls


def _result(engine: Engine, image: NDArray[Any]) -> NDArray[Any]:
    """The mask, or the values of a regression, of one image or a batch."""
    return (engine.probability if engine.info.output == "identity" else engine.segment)(image, tiling="none")


def _load_and_run(engine: Engine, image: NDArray[Any]) -> None:
    opened = Engine(engine.source, device=engine.device, threads=engine.threads, precision=engine.precision)
    _result(opened, image)


def _after_idleness(call: Callable[[], Any], count: int) -> list[float]:
    samples = []
    for _ in range(count):
        time.sleep(1.0)
        start = time.perf_counter()
        call()
        samples.append(time.perf_counter() - start)
    return samples
