"""How the time grows with batch, image side, threads and base width; the exponent of each is fitted and printed."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bench.test_segment import check
from bench.timing import growth_exponent
from unet_fast.bench import time_in_turns

SIZES = {
    "batch": [1, 2, 4, 8, 16],
    "side": [64, 128, 256, 512, 1024],
    "base width": [8, 16, 32, 64],
    "threads": [1, 2, 4, 8, 16, 32, 64],
}
QUICK_SIZES = 3


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("axis", SIZES)
def test_growth(axis: str, precision: str, session: Any, benchmark: Any) -> None:
    """All sizes are measured in turns; the last one is the row of pytest-benchmark."""
    if session.quick and (axis, precision) != ("batch", "float32"):
        pytest.skip("not with --quick")
    sizes = SIZES[axis]
    if axis == "threads":
        sizes = [size for size in sizes if size <= len(os.sched_getaffinity(0))]
        if len(sizes) < 2:
            pytest.skip("this process may use one core only")
    if session.quick:
        sizes = sizes[:QUICK_SIZES]
    calls = {str(size): _call(axis, size, precision, session) for size in sizes}
    samples = time_in_turns(calls, 1.0 if session.quick else 20.0)
    benchmark.pedantic(calls[str(sizes[-1])], rounds=3)
    exponent = growth_exponent(sizes, list(samples.values()))
    benchmark.extra_info.update(
        row=f"growth/{axis}/{precision}",
        axis=axis,
        precision=precision,
        sizes=sizes,
        seconds=list(samples.values()),
        exponent=exponent,
    )
    session.notes.append(
        f"time grows with {axis} ({precision}) to the power of "
        f"{exponent.value:.2f} ({exponent.low:.2f} .. {exponent.high:.2f})"
    )


def _call(axis: str, size: int, precision: str, session: Any) -> Callable[[], Any]:
    """What segments one image, or a batch of `size`, with `axis` at `size` and all else as in `relunet16`."""
    preset = session.networks.preset("relunet16")
    network = session.networks.of_width(size) if axis == "base width" else preset
    engine = session.engine(network, precision, threads=size if axis == "threads" else session.threads)
    if axis == "side":
        images = np.random.default_rng(5).integers(0, 256, (1, size, size, 3), np.uint8)
        check(engine, images, network.truth(images))
    else:
        images = network.batch(size if axis == "batch" else 1)
        check(engine, images, network.batch_logits(len(images)))
    return lambda: engine.segment(images, tiling="none")
