"""Single ops of `relunet16`: a network with 1 + REPEATS of them in turns with one that has a single one.

An op takes (seconds of the row - seconds of its contestant "one op") / REPEATS.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bench.contestants import Contestant
from bench.workloads import relative_error, repeated_ops
from unet_fast import Engine, UnsupportedError, freeze
from unet_fast.bench import time_in_turns
from unet_fast.freeze import Precision
from unet_fast.fuse import fuse
from unet_fast.plan import ELEMENT_BYTES, cost
from unet_fast.reference import probability, to_unit
from unet_fast.verify import TOLERANCES

REPEATS = 4
ONE_OP = "one op"
STAGES = [(16, 256), (32, 128), (64, 64), (128, 32), (256, 16)]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize(("width", "side"), STAGES, ids=[f"{width}at{side}" for width, side in STAGES])
@pytest.mark.parametrize("kind", ["conv", "down_up"])
def test_op(
    kind: str, width: int, side: int, precision: Precision, session: Any, row: Callable[..., Any], tmp_path: Any
) -> None:
    if (kind, side) == ("down_up", 16):
        pytest.skip("no stage lies below 16 x 16")
    if session.quick and (kind, side, precision) != ("conv", 64, "float32"):
        pytest.skip("not with --quick")
    short, long = repeated_ops(kind, width, REPEATS)
    try:
        engines = [
            Engine(freeze(graph, tmp_path / f"{index}.unet", precision=precision), device="cpu", precision=precision,
                   threads=session.threads)
            for index, graph in enumerate((short, long))
        ]  # fmt: skip
    except UnsupportedError as reason:
        pytest.skip(str(reason))
    image = np.random.default_rng(4).integers(0, 256, (side, side), np.uint8)
    # The whole chain, but on a small image: NumPy in float64 is slow.
    crop = image[:32, :32]
    expected = probability(long, to_unit(crop)[None, ..., None])[0, ..., 0]
    error = relative_error(engines[1].probability(crop, tiling="none"), expected)
    assert error <= TOLERANCES[precision]

    element_bytes = ELEMENT_BYTES[precision]
    costs = [[cost(graph, node, side, side, element_bytes) for node in fuse(graph).nodes] for graph in (short, long)]
    flops, moved = (
        sum(getattr(one, what) for one in costs[1]) - sum(getattr(one, what) for one in costs[0])
        for what in ("flops", "bytes")
    )
    settings = f"{engines[0].cpu_isa}, {session.threads} threads"
    one_op, all_ops = (lambda engine=engine: engine.segment(image, tiling="none") for engine in engines)
    one_op_seconds = min(time_in_turns({ONE_OP: one_op}, 0.0)[ONE_OP])
    row(
        f"op/{kind}/{width}at{side}/{precision}",
        all_ops,
        peers=[Contestant(ONE_OP, settings, one_op, error, one_op_seconds)],
        seconds=4,
        repeats=REPEATS,
        precision=precision,
        op_flops=flops / REPEATS,
        op_bytes=moved / REPEATS,
        error=error,
        settings=settings,
    )
