"""What stands around the arithmetic: loading, a call through C, and Python on top of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bench.c_api import CEngine
from bench.test_segment import check, facts
from bench.timing import quantiles
from unet_fast import Engine


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("preset", ["relunet16", "relunet64"])
def test_load_to_first_mask(preset: str, precision: str, session: Any, row: Callable[..., Any]) -> None:
    """From a file in the page cache to the first mask; the inference in it stands in `segment`."""
    if session.quick and preset != "relunet16":
        pytest.skip("not with --quick")
    network = session.networks.preset(preset)
    engine = session.engine(network, precision)
    error = check(engine, network.images[:1], network.batch_logits(1))

    def load_and_segment() -> None:
        opened = Engine(engine.source, device="cpu", precision=precision, threads=session.threads)
        opened.segment(network.images[0], tiling="none")

    row(f"load/{preset}/{precision}", load_and_segment, seconds=10, **facts(engine, network, 1, error))


def test_call_overhead(session: Any, benchmark: Any) -> None:
    """A network so small that the call is what costs: Python's `segment`, and `uf_segment` and `uf_enqueue` from C."""
    network = session.networks.tiny()
    engine = session.engine(network, "float32", threads=1)
    image = network.images[0]
    error = check(engine, image[None], network.batch_logits(1))
    rounds = 500 if session.quick else 5000
    mask = np.full(image.shape[:2], 7, np.uint8)
    with CEngine(engine, image[None].shape) as c_engine:
        c_segment, c_enqueue = c_engine.time_calls(image.ctypes.data, mask.ctypes.data, rounds)
    assert np.array_equal(mask, engine.segment(image, tiling="none")), "C and Python give different masks"

    benchmark.pedantic(lambda: engine.segment(image, tiling="none"), rounds=rounds, warmup_rounds=20)
    if not benchmark.disabled:
        seconds = benchmark.stats.stats.data
        calls = {"c_segment_seconds": float(np.median(c_segment)), "c_enqueue_seconds": float(np.median(c_enqueue))}
        known = facts(engine, network, 1, error)
        benchmark.extra_info.update(known, **calls, row="overhead/call", quantiles=quantiles(seconds))
