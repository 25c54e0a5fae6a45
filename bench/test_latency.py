"""Latency as it is lived: back to back, at the pace of a camera, and after a pause; ours and what others have."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bench import contestants
from bench.contestants import Case
from bench.test_segment import check, facts
from bench.timing import Latency, Pace, quantiles, rounds_within
from unet_fast.bench import time_in_turns

#: Frames per second -> seconds of measuring.  Rare events need many frames; nobody waits hours for the slow ones.
PACES = {1: 20, 10: 20, 30: 20, 100: 25}
BACK_TO_BACK_S = 40
IDLE_S, IDLE_ROUNDS = 10.0, 4
OURS = "unet_fast"
#: The same with a pass in each pause of so many seconds.
KEPT_WARM, PAUSE_S = "unet_fast kept warm", 0.045


@pytest.fixture
def ready(request: pytest.FixtureRequest, session: Any) -> tuple[str, Callable[[], Any], dict[str, Any]]:
    """The name of a contestant for the row, its call, which segments one image, and the facts of the row."""
    name, device, precision = request.param
    network = session.networks.preset("relunet16")
    label = f"{name}/{precision if device == 'cpu' else f'{device} {precision}'}"
    if name in (OURS, KEPT_WARM):
        engine = session.engine(network, precision, device, keep_warm=PAUSE_S if name == KEPT_WARM else 0.0)
        image = network.images[0]
        error = check(engine, image[None], network.batch_logits(1))
        return label, lambda: engine.segment(image, tiling="none"), facts(engine, network, 1, error)
    if session.quick:
        pytest.skip("not with --quick")
    found, left_out = contestants.prepare(Case(network, 1, precision, session.threads, device), [name])
    if not found:
        pytest.skip(f"{name}: {left_out[name]}")
    return label, found[0].run, {"precision": precision, "settings": found[0].settings, "error": found[0].error}


def usual_seconds(call: Callable[[], Any]) -> float:
    return float(np.median(time_in_turns({"": call}, 0.0)[""]))


CONTESTANTS = pytest.mark.parametrize(
    "ready",
    [
        (OURS, "cpu", "float32"),
        (KEPT_WARM, "cpu", "float32"),
        (OURS, "cpu", "bf16"),
        (OURS, "cpu", "int8"),
        ("ONNX Runtime", "cpu", "float32"),
        ("OpenVINO", "cpu", "bf16"),
        (OURS, "cuda", "fp16"),
        ("torch.compile", "cuda", "fp16"),
    ],
    indirect=True,
    ids=lambda param: "-".join(param).replace(" ", "_"),
)


def record(benchmark: Any, row: str, deadline_s: float | None, lost: int, facts: dict[str, Any]) -> None:
    if not benchmark.disabled:
        data = benchmark.stats.stats.data
        latency = Latency.of(data, deadline_s)._asdict()
        benchmark.extra_info.update(facts, row=row, latency=latency, lost=lost, quantiles=quantiles(data))


@CONTESTANTS
def test_back_to_back(ready: Any, session: Any, benchmark: Any) -> None:
    label, call, known = ready
    seconds = 2 if session.quick else BACK_TO_BACK_S
    rounds = rounds_within(seconds, usual_seconds(call), 20, 1_000_000)
    benchmark.pedantic(call, rounds=rounds)
    record(benchmark, f"latency/{label}/back to back", None, 0, known)


@CONTESTANTS
@pytest.mark.parametrize("rate_hz", PACES)
def test_paced(rate_hz: int, ready: Any, session: Any, benchmark: Any) -> None:
    if session.quick and rate_hz != 10:
        pytest.skip("not with --quick")
    label, call, known = ready
    pace = Pace(rate_hz)
    frames = pace.frames_within(2 if session.quick else PACES[rate_hz], usual_seconds(call))
    benchmark.pedantic(call, setup=pace, rounds=frames)
    record(benchmark, f"latency/{label}/{rate_hz} Hz", pace.period_s, pace.lost, known)


@CONTESTANTS
def test_after_idleness(ready: Any, session: Any, benchmark: Any) -> None:
    if session.quick:
        pytest.skip("not with --quick")
    label, call, known = ready
    call()
    benchmark.pedantic(call, setup=lambda: time.sleep(IDLE_S), rounds=IDLE_ROUNDS)
    record(benchmark, f"latency/{label}/after {IDLE_S:.0f} s idle", None, 0, known)
