"""Promise 4: any thread may call, at any time: ThreadSanitizer, forks, the end of the interpreter, Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.fake_gpu import FakeMachine
from tests.fake_kernels import Target, with_kernels
from tests.fuzz import build as fuzz
from tests.programs import build_library, compile_program, interruptible, run
from tests.trust.conftest import Campaign

THREADS = ROOT / "tests" / "c" / "test_threads.cpp"
Files = Callable[..., Path]


def test_sixteen_threads(campaign: Campaign, tiny_engine: Path, engine_file: Files, tmp_path: Path) -> None:
    """Mixed sizes on one engine, others opened and closed meanwhile; children forked before and after the first use."""
    program = compile_program(tmp_path / "threads", THREADS, library=ROOT / "unet_fast" / "lib")
    rounds = campaign.count(12, 2000)
    assert "0 failures" in run(program, engine_file("plain"), "--threads", "16", "--rounds", str(rounds), timeout=3000)
    campaign.record("threads", rounds_of_16=rounds)


@pytest.mark.slow  # compiles the library once more
def test_thread_sanitizer(campaign: Campaign, engine_file: Files, machine: FakeMachine, tmp_path: Path) -> None:
    """The CPU path, and the CUDA executor with the fake driver."""
    options = (
        "-DUF_SANITIZE=thread", "-DCMAKE_BUILD_TYPE=RelWithDebInfo", "-DUF_STATIC=OFF",
        f"-DCMAKE_CXX_COMPILER={fuzz.clang()}",
    )  # fmt: skip
    library = build_library(ROOT / "build" / "tsan", *options, targets=("unet_fast",), timeout=1800)
    program = compile_program(
        tmp_path / "threads", THREADS, library=library, flags=("-fsanitize=thread",), cpp=fuzz.clang()
    )
    rounds = campaign.count(6, 60)
    plain = engine_file("plain")
    kernels = with_kernels(plain, tmp_path / "kernels.unet", (Target(),), ("float32",))
    arguments = ("--no-fork", "--threads", "16", "--rounds", str(rounds))
    environment = {"TSAN_OPTIONS": "halt_on_error=1 second_deadlock_stack=1"}
    assert "0 failures" in run(program, plain, *arguments, timeout=1800, **environment)
    with_driver = environment | {"LD_LIBRARY_PATH": machine.folder}
    assert "0 failures" in run(program, kernels, *arguments, timeout=1800, **with_driver)
    campaign.record("ThreadSanitizer", rounds_of_16_on_the_cpu=rounds, rounds_of_16_on_the_fake_gpu=rounds)


# What a child does while its interpreter ends: daemon threads open engines, make contexts and segment, in short calls
# and long ones.
EXIT = """
import sys, threading, time
import numpy as np
from unet_fast import Engine, _native
path, side, how, delay = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
engine = Engine(path, device="cpu", threads=2)
image = np.zeros((side, side), np.uint8)
def segment():
    while True:
        engine.segment(image)
def reopen():
    while True:
        try:
            Engine(b"not an engine file" if how == "refused" else path, device="cpu", threads=1)
        except ValueError:
            pass
def make_contexts():
    while True:
        _native.Context(engine._native, count=1, height=side, width=side)
threads = [threading.Thread(target=work, daemon=True) for work in (segment, segment, reopen, make_contexts)]
for thread in threads:
    thread.start()
time.sleep(delay)
"""


@pytest.mark.parametrize("how", ["opened", "refused"])
@pytest.mark.parametrize("side", [16, 500])
def test_the_interpreter_may_end_with_work_in_flight(
    campaign: Campaign, tiny_engine: Path, side: int, how: str
) -> None:
    times = campaign.count(4, 60)
    for attempt in range(times):
        delay = 0.02 + 0.013 * attempt / times
        command = [sys.executable, "-c", EXIT, str(tiny_engine), str(side), how, str(delay)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert ended.returncode == 0, f"{ended.returncode}: {ended.stderr}"
        assert ended.stderr == ""


# A child that segments until Ctrl-C, then says that the engine still gives what it gave.
INTERRUPTED = """
import sys
import numpy as np
from unet_fast import Engine
engine = Engine(sys.argv[1], device="cpu", threads=2)
small = np.arange(1600, dtype=np.uint8).reshape(40, 40)
expected = engine.probability(small)
large = np.zeros((1500, 1500), np.uint8)
print("ready", flush=True)
try:
    while True:
        engine.segment(large)
except KeyboardInterrupt:
    assert np.array_equal(engine.probability(small), expected)
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.21])
def test_ctrl_c(tiny_engine: Path, delay: float) -> None:
    """The call in progress is finished, `KeyboardInterrupt` follows, the engine goes on."""
    command = [sys.executable, "-c", INTERRUPTED, str(tiny_engine)]
    child = interruptible(command)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    time.sleep(delay)
    child.send_signal(signal.SIGINT)
    said, errors = child.communicate(timeout=60)
    assert (child.returncode, said, errors) == (0, "interrupted\n", "")


def test_ctrl_c_of_the_command_leaves_whole_masks(tiny_engine: Path, tmp_path: Path) -> None:
    """`unet-fast segment` stops between files or in one; what stands in the folder is whole."""
    import numpy as np
    from PIL import Image

    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    for index in range(300):
        Image.fromarray(np.full((300, 300), index % 256, np.uint8)).save(images / f"{index:03}.png")
    command = [sys.executable, "-m", "unet_fast", "segment", str(tiny_engine), str(images), "-o", str(masks)]
    child = interruptible(command)
    deadline = time.monotonic() + 60
    while child.poll() is None and not (masks.is_dir() and any(masks.glob("*.png"))) and time.monotonic() < deadline:
        time.sleep(0.005)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode not in (0, -signal.SIGSEGV, -signal.SIGABRT), errors
    written = list(masks.iterdir())
    assert 0 < len(written) < 300
    for path in written:
        assert path.suffix == ".png", f"{path} is left behind"
        with Image.open(path) as mask:
            assert np.asarray(mask).shape == (300, 300)


def test_forks_before_and_after_use(tiny_engine: Path) -> None:
    """From Python, a child of an engine that has not run, and of one that other threads are using."""
    code = """
import os, sys, threading
import numpy as np
from unet_fast import Engine
image = np.arange(1600, dtype=np.uint8).reshape(40, 40)
used, unused = (Engine(sys.argv[1], device="cpu", threads=2) for _ in range(2))
expected = used.probability(image)
stop = threading.Event()
def work():
    while not stop.is_set():
        used.probability(image)
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
wrong = 0
for attempt in range(30):
    child = os.fork()
    if child == 0:
        engine = used if attempt % 2 else unused
        os._exit(0 if np.array_equal(engine.probability(image), expected) else 1)
    wrong += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
stop.set()
for thread in threads:
    thread.join()
sys.exit(wrong)
"""
    ended = subprocess.run([sys.executable, "-c", code, str(tiny_engine)], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
