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
from unet_fast.freeze import Precision

SIZES = {
    "batch": [1, 2, 4, 8, 16],
    "side": [64, 128, 256, 512, 1024],
    "base width": [8, 16, 32, 64],
    "threads": [1, 2, 4, 8, 16, 32, 64],
}
QUICK_SIZES = 3
#: Of the wide network only what a user can choose for it.
AXES_OF_RELUNET64 = ["batch", "threads"]
CASES = [("relunet16", axis) for axis in SIZES] + [("relunet64", axis) for axis in AXES_OF_RELUNET64]


@pytest.mark.parametrize("precision", ["float32", "bf16", "int8"])
@pytest.mark.parametrize(("preset", "axis"), CASES)
def test_growth(preset: str, axis: str, precision: Precision, session: Any, benchmark: Any) -> None:
    """All sizes are measured in turns; the last one is the row of pytest-benchmark."""
    if session.quick and (preset, axis, precision) != ("relunet16", "batch", "float32"):
        pytest.skip("not with --quick")
    if precision == "int8" and axis not in AXES_OF_RELUNET64:
        pytest.skip("int8 is calibrated for images and networks of one kind")
    sizes = SIZES[axis]
    if axis == "threads":
        sizes = [size for size in sizes if size <= len(os.sched_getaffinity(0))]
        if len(sizes) < 2:
            pytest.skip("this process may use one core only")
    if session.quick:
        sizes = sizes[:QUICK_SIZES]
    calls = {str(size): _call(preset, axis, size, precision, session) for size in sizes}
    samples = time_in_turns(calls, 1.0 if session.quick else 20.0)
    benchmark.pedantic(calls[str(sizes[-1])], rounds=3)
    exponent = growth_exponent(sizes, list(samples.values()))
    benchmark.extra_info.update(
        row="/".join(["growth", *([] if preset == "relunet16" else [preset]), axis, precision]),
        axis=axis,
        precision=precision,
        sizes=sizes,
        seconds=list(samples.values()),
        exponent=exponent,
    )
    session.notes.append(
        f"the time of {preset} grows with {axis} ({precision}) to the power of "
        f"{exponent.value:.2f} ({exponent.low:.2f} .. {exponent.high:.2f})"
    )


def _call(preset: str, axis: str, size: int, precision: Precision, session: Any) -> Callable[[], Any]:
    """What segments one image, or a batch of `size`, with `axis` at `size` and all else as in `preset`."""
    network = session.networks.of_width(size) if axis == "base width" else session.networks.preset(preset)
    engine = session.engine(network, precision, threads=size if axis == "threads" else session.threads)
    if axis == "side":
        images = np.random.default_rng(5).integers(0, 256, (1, size, size, 3), np.uint8)
        check(engine, images, network.truth(images))
    else:
        images = network.batch(size if axis == "batch" else 1)
        check(engine, images, network.batch_logits(len(images)))
    return lambda: engine.segment(images, tiling="none")
