"""Latency as it is lived: back to back, at the pace of a camera, and after a pause; ours and what others have."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from bench import contestants
from bench.contestants import Case
from bench.test_segment import check, facts
from bench.timing import Latency, Pace, quantiles

#: Frames per second -> seconds of measuring.  Rare events need many frames; nobody waits hours for the slow ones.
PACES = {1: 30, 10: 30, 30: 30, 100: 30}
BACK_TO_BACK_S = 60
IDLE_S, IDLE_ROUNDS = 10.0, 5
OURS = "unet_fast"


@pytest.fixture
def ready(request: pytest.FixtureRequest, session: Any) -> tuple[Callable[[], Any], dict[str, Any]]:
    """A call that segments one image by the contestant of the test, and the facts of its row."""
    name, precision = request.param
    network = session.networks.preset("relunet16")
    if name == OURS:
        engine = session.engine(network, precision)
        image = network.images[0]
        error = check(engine, image[None], network.batch_logits(1))
        return lambda: engine.segment(image, tiling="none"), facts(engine, network, 1, error, contestant=name)
    if session.quick:
        pytest.skip("not with --quick")
    found, left_out = contestants.prepare(Case(network, 1, precision, session.threads), [name])
    if not found:
        pytest.skip(f"{name}: {left_out[name]}")
    return found[0].run, {
        "contestant": name,
        "precision": precision,
        "settings": found[0].settings,
        "flops": network.flops,
    }


CONTESTANTS = pytest.mark.parametrize(
    "ready",
    [(OURS, "float32"), (OURS, "bf16"), ("PyTorch", "float32"), ("ONNX Runtime", "float32"), ("OpenVINO", "bf16")],
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
    call, known = ready
    start = time.perf_counter()
    for _ in range(5):
        call()
    usual = (time.perf_counter() - start) / 5
    rounds = max(20, int((2 if session.quick else BACK_TO_BACK_S) / usual))
    benchmark.pedantic(call, rounds=rounds)
    record(benchmark, f"latency/{known['contestant']}/{known['precision']}/back to back", None, 0, known)


@CONTESTANTS
@pytest.mark.parametrize("rate_hz", PACES)
def test_paced(rate_hz: int, ready: Any, session: Any, benchmark: Any) -> None:
    if session.quick and rate_hz != 10:
        pytest.skip("not with --quick")
    call, known = ready
    pace = Pace(rate_hz)
    call()
    benchmark.pedantic(call, setup=pace, rounds=rate_hz * (2 if session.quick else PACES[rate_hz]))
    name = f"latency/{known['contestant']}/{known['precision']}/{rate_hz} Hz"
    record(benchmark, name, pace.period_s, pace.lost, known)


@CONTESTANTS
def test_after_idleness(ready: Any, session: Any, benchmark: Any) -> None:
    if session.quick:
        pytest.skip("not with --quick")
    call, known = ready
    call()
    benchmark.pedantic(call, setup=lambda: time.sleep(IDLE_S), rounds=IDLE_ROUNDS)
    name = f"latency/{known['contestant']}/{known['precision']}/after {IDLE_S:.0f} s idle"
    record(benchmark, name, None, 0, known)
