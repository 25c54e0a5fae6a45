"""`keep_warm`: passes in the pauses between calls, which change nothing but the time."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.pixels import random_image
from unet_fast import Engine

Files = Callable[..., Path]
SHORTEST = 0.001


def threads() -> set[str]:
    """Those of engines that are kept warm."""
    gc.collect()
    tasks = Path("/proc/self/task")
    return {task for task in os.listdir(tasks) if (tasks / task / "comm").read_text() == "uf_keep_warm\n"}


def processor_seconds(thread: str) -> float:
    return int(Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[0]) / 1e9


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("network", ["plain", "rgb", "classes"])
def test_results_are_the_same(engine_file: Files, network: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    cold = Engine(engine_file(network), device="cpu", threads=2)
    warm = Engine(engine_file(network), device="cpu", threads=2, keep_warm=SHORTEST)
    channels = () if warm.info.channels == 1 else (warm.info.channels,)
    images = [random_image((*shape, *channels), "uint8") for shape in [(32, 32), (90, 70), (2, 32, 32)]]
    truths = [cold.probability(image) for image in images]

    def call(index: int) -> bool:
        time.sleep(random.uniform(0, 0.004))
        which = index % len(images)
        return np.array_equal(warm.probability(images[which]), truths[which])

    assert all(call(index) for index in range(60))
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call, range(60)))


def test_works_in_pauses_only_if_asked(engine_file: Files) -> None:
    image = random_image((32, 32), "uint8")
    before = threads()
    with_pauses = Engine(engine_file("plain"), device="cpu", threads=1)
    with_pauses.segment(image)
    assert threads() == before
    engine = Engine(engine_file("plain"), device="cpu", threads=1, keep_warm=SHORTEST)
    (thread,) = threads() - before
    time.sleep(0.1)
    idle = processor_seconds(thread)  # nothing has been segmented, so there is no memory to keep warm
    engine.segment(image)
    deadline = time.monotonic() + 30
    while processor_seconds(thread) < idle + 0.05 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert processor_seconds(thread) >= idle + 0.05
    del engine
    assert threads() == before


def test_closes_in_the_middle_of_a_pass(engine_file: Files) -> None:
    image = random_image((256, 256), "uint8")
    for _ in range(30):
        engine = Engine(engine_file("plain"), device="cpu", threads=2, keep_warm=SHORTEST)
        engine.segment(image, tiling="none")
        time.sleep(0.0015)
        del engine


def test_a_child_of_fork_goes_on_cold(engine_file: Files) -> None:
    program = f"""
import os, time, numpy as np, unet_fast
engine = unet_fast.Engine({str(engine_file("plain"))!r}, device="cpu", threads=2, keep_warm={SHORTEST})
image = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
expected = engine.segment(image)
for _ in range(20):
    time.sleep(0.002)
    child = os.fork()
    if child == 0:
        right = all(np.array_equal(engine.segment(image), expected) for _ in range(3))
        del engine
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0
assert np.array_equal(engine.segment(image), expected)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=120)


def test_the_interpreter_ends_in_the_middle_of_a_pass(engine_file: Files) -> None:
    program = f"""
import numpy as np, unet_fast
engine = unet_fast.Engine({str(engine_file("plain"))!r}, device="cpu", keep_warm={SHORTEST})
engine.segment(np.zeros((256, 256), np.uint8), tiling="none")
"""
    for _ in range(3):
        subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_pickling_keeps_it(engine_file: Files) -> None:
    before = threads()
    engine = Engine(engine_file("plain"), device="cpu", threads=1, keep_warm=0.05)
    copy = pickle.loads(pickle.dumps(engine))
    assert len(threads() - before) == 2
    del engine, copy


@pytest.mark.parametrize("value", [-1, 0.0001, 61, float("nan"), float("inf")])
def test_values_out_of_range(engine_file: Files, value: float) -> None:
    with pytest.raises(ValueError, match=r"keep_warm must be 0 or a pause of 0.001 to 60 seconds"):
        Engine(engine_file("plain"), keep_warm=value)


def test_no_number(engine_file: Files) -> None:
    with pytest.raises(TypeError, match="keep_warm must be a number"):
        Engine(engine_file("plain"), keep_warm="yes")  # type: ignore[arg-type]
