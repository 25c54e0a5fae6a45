"""On a GPU, with image and mask in its memory: the time of a pass by device events and by the clock on the wall."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench.c_api import CEngine
from bench.test_segment import check, facts

#: Passes between two events: enough that the time of an event does not count.
PASSES = 20


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "fp16"])
@pytest.mark.parametrize("batch", [1, 4, 16], ids="batch{}".format)
@pytest.mark.parametrize("preset", ["relunet16", "relunet64"])
def test_enqueue(preset: str, batch: int, precision: Any, session: Any, row: Callable[..., Any]) -> None:
    """`uf_enqueue` on a stream.  The row is one pass and waiting for it; `device_seconds` are passes back to back."""
    network = session.networks.preset(preset)
    engine = session.engine(network, precision, "cuda")
    if not torch.cuda.is_available():
        pytest.skip("needs a PyTorch with CUDA, for memory, streams and events")
    images = network.batch(batch)
    error = check(engine, images, network.batch_logits(batch))
    pixels = torch.from_numpy(images).cuda()
    mask = torch.full(images.shape[:3], 7, dtype=torch.uint8, device="cuda")
    stream = torch.cuda.Stream()
    with CEngine(engine, images.shape, on_device=True) as c_engine:

        def enqueue(passes: int = 1) -> None:
            c_engine.enqueue(pixels.data_ptr(), mask.data_ptr(), stream.cuda_stream, passes)

        def enqueue_and_wait() -> None:
            enqueue()
            stream.synchronize()

        enqueue_and_wait()
        assert (mask.cpu().numpy() == engine.segment(images, tiling="none")).all()
        device_seconds = []
        for _ in range(10 if session.quick else 100):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record(stream)
            enqueue(PASSES)
            end.record(stream)
            end.synchronize()
            device_seconds.append(start.elapsed_time(end) / 1e3 / PASSES)
        row(
            f"enqueue/{preset}/{precision}/batch{batch}",
            enqueue_and_wait,
            seconds=10,
            **facts(engine, network, batch, error, device_seconds=device_seconds),
        )
