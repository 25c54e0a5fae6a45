"""What stands around the arithmetic: loading, a call through C, and Python on top of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bench.c_api import CEngine
from bench.test_segment import PLACES, check, facts
from unet_fast import Engine


@pytest.mark.parametrize(("device", "precision"), PLACES)
@pytest.mark.parametrize("preset", ["relunet16", "relunet64"])
def test_load_to_first_mask(preset: str, device: str, precision: Any, session: Any, row: Callable[..., Any]) -> None:
    """From a file in the page cache to the first mask; the inference in it stands in `segment`."""
    if session.quick and preset != "relunet16":
        pytest.skip("not with --quick")
    network = session.networks.preset(preset)
    engine = session.engine(network, precision, device)
    error = check(engine, network.images[:1], network.batch_logits(1))

    def load_and_segment() -> None:
        opened = Engine(engine.source, device=engine.device, precision=precision, threads=session.threads)
        opened.segment(network.images[0], tiling="none")

    row(f"load/{preset}/{device}/{precision}", load_and_segment, seconds=10, **facts(engine, network, 1, error))


def test_call_overhead(session: Any, row: Callable[..., Any]) -> None:
    """A network so small that the call is what costs: Python's `segment`, in turns with `uf_segment` and `uf_enqueue`
    as C times them.
    """
    network = session.networks.tiny()
    engine = session.engine(network, "float32", threads=1)
    image = network.images[0]
    error = check(engine, image[None], network.batch_logits(1))
    mask = np.full(image.shape[:2], 7, np.uint8)
    c_segment: list[float] = []
    c_enqueue: list[float] = []
    with CEngine(engine, image[None].shape) as c_engine:

        def call_from_c() -> None:
            segment, enqueue = c_engine.time_calls(image.ctypes.data, mask.ctypes.data, rounds=1)
            c_segment.append(float(segment[0]))
            c_enqueue.append(float(enqueue[0]))

        call_from_c()
        assert np.array_equal(mask, engine.segment(image, tiling="none")), "C and Python give different masks"
        c_segment.clear()
        c_enqueue.clear()
        row(
            "overhead/call",
            lambda: engine.segment(image, tiling="none"),
            most=500,
            also=call_from_c,
            **facts(engine, network, 1, error, c_segment_seconds=c_segment, c_enqueue_seconds=c_enqueue),
        )
