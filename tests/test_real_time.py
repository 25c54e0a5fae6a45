"""What a control loop relies on: a call does nothing but compute, on threads that are where they were put."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.capi import LIBRARY, UNSUPPORTED, Api, StatusError
from tests.conftest import ROOT
from tests.programs import compile_program, run

pytestmark = pytest.mark.skipif(not LIBRARY.exists(), reason=f"no {LIBRARY}")


@pytest.mark.parametrize(
    ("network", "threads", "keep_warm_ms"),
    [("plain", 1, 0), ("plain", 2, 0), ("valid", 1, 0), ("standardise", 1, 0), ("plain", 1, 60000)],
)
def test_calls_only_compute(
    network: str, threads: int, keep_warm_ms: int, engine_file: Callable[..., Path], tmp_path: Path
) -> None:
    """No allocation, locale, page fault or system call, and no mutex in uf_enqueue; with more than one thread futex, to
    wake and wait."""
    if platform.libc_ver()[0] != "glibc" or platform.system() != "Linux":
        pytest.skip("counts in ways that need glibc and Linux")
    source = ROOT / "tests" / "c" / "test_real_time.c"
    program = compile_program(tmp_path / "program", source, library=LIBRARY.parent, flags=("-ldl",))
    said = run(program, engine_file(network), str(threads), str(keep_warm_ms))
    if "skipped" in said:
        pytest.skip(said)
    assert "no system calls" in said


def test_the_bench_of_a_control_loop(engine_file: Callable[..., Path], tmp_path: Path) -> None:
    """bench/real_time.c, for a moment."""
    if platform.system() != "Linux":
        pytest.skip("loads the machine in a way that needs Linux")
    program = compile_program(tmp_path / "program", ROOT / "bench" / "real_time.c", library=LIBRARY.parent)
    said = run(program, engine_file("plain"), "1000", "1")
    assert "1000 calls, 1 processes of load, 1 threads" in said
    times = dict(re.findall(r"^(\S+) +([\d.]+) us$", said, re.MULTILINE))
    assert list(times) == ["median", "p99", "p99.9", "maximum"]
    microseconds = [float(text) for text in times.values()]
    assert microseconds == sorted(microseconds)
    assert microseconds[0] > 0


def workers() -> set[int]:
    """Thread ids of this process that the runtime started."""
    tasks, names = Path("/proc/self/task"), ("unet_fast\n", "uf_keep_warm\n")
    return {int(task.name) for task in tasks.iterdir() if (task / "comm").read_text() in names}


def workers_beside(others: set[int], count: int) -> list[int]:
    """The `count` threads that were started last; each gives itself its name, so the last may take a moment."""
    deadline = time.monotonic() + 10
    while len(workers() - others) < count and time.monotonic() < deadline:
        time.sleep(0.001)
    started = sorted(workers() - others)
    assert len(started) == count
    return started


def test_threads_are_bound_to_their_processors(engine_file: Callable[..., Path]) -> None:
    if platform.system() != "Linux":
        pytest.skip("reads /proc")
    allowed = sorted(os.sched_getaffinity(0))
    affinity = f"{allowed[-1]},{allowed[0]}"
    others = workers()
    options = {"device": "cpu", "threads": 4, "thread_affinity": affinity, "keep_warm_ms": 60000}
    with Api().engine(engine_file("plain"), **options):
        bound = [os.sched_getaffinity(thread) for thread in workers_beside(others, 4)]
        assert bound == [{allowed[-1]}, {allowed[0]}, {allowed[-1]}, {allowed[0]}]
        assert os.sched_getaffinity(0) == set(allowed), "the caller's thread is his own"


def test_threads_run_where_the_opening_thread_may(engine_file: Callable[..., Path]) -> None:
    if platform.system() != "Linux":
        pytest.skip("reads /proc")
    allowed, others = os.sched_getaffinity(0), workers()
    os.sched_setaffinity(0, {max(allowed)})
    try:
        with Api().engine(engine_file("plain"), device="cpu", threads=3, keep_warm_ms=60000):
            os.sched_setaffinity(0, allowed)
            assert [os.sched_getaffinity(thread) for thread in workers_beside(others, 3)] == 3 * [{max(allowed)}]
    finally:
        os.sched_setaffinity(0, allowed)


def may_be_real_time() -> bool:
    """Whether this process may have threads of SCHED_FIFO."""
    child = os.fork()
    if child == 0:
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(7))
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(("threads", "keep_warm_ms"), [(3, 0), (1, 60000)])
def test_threads_have_their_priority(threads: int, keep_warm_ms: int, engine_file: Callable[..., Path]) -> None:
    if platform.system() != "Linux":
        pytest.skip("reads /proc")
    others = workers()
    options = {"device": "cpu", "threads": threads, "thread_priority": 7, "keep_warm_ms": keep_warm_ms}
    api = Api()
    if not may_be_real_time():
        with pytest.raises(StatusError, match="CAP_SYS_NICE") as refused, api.engine(engine_file("plain"), **options):
            pass
        assert refused.value.status == UNSUPPORTED
        assert workers() == others
        pytest.skip("checked the refusal only: no right to real-time threads here")
    with api.engine(engine_file("plain"), **options):
        for thread in workers_beside(others, 2 if keep_warm_ms == 0 else 1):
            assert os.sched_getscheduler(thread) == os.SCHED_FIFO
            assert os.sched_getparam(thread).sched_priority == 7
        assert os.sched_getscheduler(0) == os.SCHED_OTHER
